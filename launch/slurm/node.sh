#!/usr/bin/env bash
# node.sh COMMAND...: srun starts it once on every training node. SLURM_PROCID is the node's rank here,
# but not in the job's script.
set -euo pipefail
nodes=(
  --nodes "$SLURM_NNODES" --node-rank "$SLURM_PROCID"
  --main-address "$MAIN_ADDRESS" --main-port "$MAIN_PORT" --launch-id "$LAUNCH_ID"
  --join-timeout 300 # time to unpack a container; less than srun's --wait
)
dpo-dist preflight recipes/incident_triage/run.yaml --set sft.global_batch_size=16 --set sft.micro_batch_size=1 --set train.global_batch_size=16 --set train.micro_batch_size=1 --set sft.accelerate_config=runs/incident-triage/launch/slurm/accelerate_sft.yaml --set train.accelerate_config=runs/incident-triage/launch/slurm/accelerate_train.yaml "${nodes[@]}"
# exec: the command gets the signals, and its exit code is the task's.
exec "$@" "${nodes[@]}"
