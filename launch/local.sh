#!/usr/bin/env bash
# All phases of incident-triage on this machine, one after the other. Made by `dpo-dist launch local`.
# Completed phases are skipped: after an interruption, run it again.
#
#   bash local.sh [--set KEY=VALUE]...    more arguments for `dpo-dist run`
#   ACCELERATE_CONFIG=FILE                instead of the one chosen for the visible GPUs
#   CUDA_VISIBLE_DEVICES=0,1              these GPUs only
set -euo pipefail
shopt -s inherit_errexit # a failure in $(...) also ends the script
cd /shared/dpo_dist
source .venv/bin/activate
logs=runs/incident-triage/logs
launch=runs/incident-triage/launch/local
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

# accelerate_config PHASE [FILE]: the configuration for the visible GPUs. If there are any, FILE
# takes precedence: the run file's own configuration, given if it is one for GPUs.
accelerate_config() {
  local phase=$1 own=${2:-} file
  if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    echo "$ACCELERATE_CONFIG"
    return
  fi
  case $gpus in
    0) file=accelerate_configs/cpu.yaml ;;
    1) file=${own:-accelerate_configs/single_gpu.yaml} ;;
    *) file=${own:-accelerate_configs/zero2.yaml} ;;
  esac
  if [ "$gpus" -gt 0 ]; then
    sed -e "s/^num_processes:.*/num_processes: $gpus/" -e 's/^num_machines:.*/num_machines: 1/' \
      "$file" > "$launch/accelerate_$phase.yaml"
    file=$launch/accelerate_$phase.yaml
  fi
  echo "$file"
}

gpus=$(count_gpus)
settings=()
file=$(accelerate_config sft)
settings+=(--set "sft.accelerate_config=$file")
file=$(accelerate_config train)
settings+=(--set "train.accelerate_config=$file")

log=$logs/local-$(date -u +%Y%m%dT%H%M%SZ).log
echo "GPUs: $gpus; log: $log"
# tee must outlive the signals that a terminal or a supervisor sends to all processes.
exec > >(trap '' INT TERM && exec tee -a "$log") 2>&1
# Replaces this shell: signals reach it, and its exit code is the script's.
exec dpo-dist run recipes/incident_triage/run.yaml "${settings[@]}" "$@"
