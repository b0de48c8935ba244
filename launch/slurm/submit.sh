#!/usr/bin/env bash
# Submits the jobs of incident-triage. Each starts after the previous one has succeeded. Made by
# `dpo-dist launch slurm`. After a failure, submit all jobs again: completed work is skipped.
set -euo pipefail
cd /shared/dpo_dist
jobs=runs/incident-triage/launch/slurm
mkdir -p runs/incident-triage/logs # Slurm does not create the folder for a job's output

last=
# submit JOB ARGUMENTS...
submit() {
  local after=()
  if [ -n "$last" ]; then
    after=(--dependency="afterok:$last" --kill-on-invalid-dep=yes)
  fi
  last=$(sbatch --parsable "${after[@]}" "$jobs/$1.sbatch" "${@:2}")
  last=${last%%;*} # with several clusters it is ID;CLUSTER
  echo "$last $*"
}

submit sft
submit sample
submit judge
submit train
submit evaluate
submit score
submit report
