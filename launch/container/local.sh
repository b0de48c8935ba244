#!/usr/bin/env bash
# Runs the phases of incident-triage on this machine in order. Made by `dpo-dist launch local`.
# Completed phases are skipped: after an interruption, run it again.
#
#   bash local.sh [--set KEY=VALUE]...    more arguments for `dpo-dist run`
#   ACCELERATE_CONFIG=FILE                replaces the configuration chosen for the visible GPUs
#   CUDA_VISIBLE_DEVICES=0,1              uses only these GPUs
set -euo pipefail
shopt -s inherit_errexit # a failure in $(...) also ends the script
cd /workspace
logs=/workspace/runs/incident-triage/logs
launch=/workspace/runs/incident-triage/launch/local
mkdir -p "$logs" "$launch"

count_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
  elif command -v nvidia-smi > /dev/null; then
    nvidia-smi -L | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

# choose PHASE BATCH MICRO UNIT [FILE]: sets how a phase trains on the visible GPUs. The global batch
# BATCH does not change. It uses one process per GPU, but no more than can share BATCH in multiples of
# UNIT, and the largest micro-batch up to MICRO that divides a process's share. FILE is the run
# file's configuration, if it is for GPUs.
choose() {
  local phase=$1 batch=$2 micro=$3 unit=$4 own=${5:-} processes=$gpus file
  if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    settings+=(--set "$phase.accelerate_config=$ACCELERATE_CONFIG")
    return
  fi
  if [ "$gpus" -eq 0 ]; then
    settings+=(--set "$phase.accelerate_config=cpu")
    return
  fi
  while ((batch % (processes * unit))); do processes=$((processes - 1)); done
  while ((batch / processes % micro)); do micro=$((micro - 1)); done
  file=${own:-accelerate_configs/zero2.yaml}
  if [ "$processes" -eq 1 ]; then
    file=${own:-accelerate_configs/single_gpu.yaml}
  fi
  sed -e "s/^num_processes:.*/num_processes: $processes/" -e 's/^num_machines:.*/num_machines: 1/' \
    "$file" > "$launch/accelerate_$phase.yaml"
  settings+=(--set "$phase.accelerate_config=$launch/accelerate_$phase.yaml")
  if [ "$micro" -ne "$3" ]; then
    settings+=(--set "$phase.micro_batch_size=$micro")
  fi
  if [ "$processes" -ne "$gpus" ] || [ "$micro" -ne "$3" ]; then
    shares+="; $phase: $processes processes with micro_batch_size $micro share the global batch of $batch"
  fi
}

gpus=$(count_gpus)
settings=()
shares=
choose sft 4 4 1
choose train 8 4 1

log=$logs/local-$(date -u +%Y%m%dT%H%M%SZ).log
echo "GPUs: $gpus$shares; log: $log"
# tee ignores the signals that a terminal or a supervisor sends to all processes.
exec > >(trap '' INT TERM && exec tee -a "$log") 2>&1
# exec: dpo-dist gets the signals, and its exit code is the script's.
exec dpo-dist run /workspace/recipes/incident_triage/run.yaml --preflight --set model.base=HuggingFaceTB/SmolLM2-135M-Instruct --set run.output_dir=/workspace/runs "${settings[@]}" "$@"
