#!/usr/bin/env bash
# One of the nodes that train: node.sh COMMAND... srun starts it once on each of them, and here,
# unlike in the job's own script, SLURM_PROCID is the node's rank.
set -euo pipefail
nodes=(
  --nodes "$SLURM_NNODES" --node-rank "$SLURM_PROCID"
  --main-address "$MAIN_ADDRESS" --main-port "$MAIN_PORT" --launch-id "$LAUNCH_ID"
  --join-timeout 300 # a node may have a container to unpack; less than srun's --wait
)
dpo-dist preflight recipes/incident_triage/run.yaml --set sft.global_batch_size=16 --set sft.micro_batch_size=1 --set train.global_batch_size=16 --set train.micro_batch_size=1 --set sft.accelerate_config=runs/incident-triage/launch/slurm/accelerate_sft.yaml --set train.accelerate_config=runs/incident-triage/launch/slurm/accelerate_train.yaml "${nodes[@]}"
# Replaces this shell: signals reach it, and its exit code is the task's.
exec "$@" "${nodes[@]}"
