# shellcheck shell=bash disable=SC1090,SC1091
# Read by every job of incident-triage: its environment, and how it stops and is requeued.
source .venv/bin/activate
set -uo pipefail # only now: what a site's own scripts do is not ours to judge
command -v dpo-dist > /dev/null || {
  echo "dpo-dist was not found on $(hostname): use --setup to make it available" >&2
  exit 2
}

# The arguments of every command of the run.
# shellcheck disable=SC2034
run=(recipes/incident_triage/run.yaml --set sft.global_batch_size=16 --set sft.micro_batch_size=1 --set train.global_batch_size=16 --set train.micro_batch_size=1)

# Since Slurm 22.05 srun does not inherit it, and a task would be bound to one processor.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Where node 0 is, for the jobs that train. Looked up here, outside any container. NodeAddr is the
# node's name, unless the cluster reaches it by another.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_ADDRESS=$(scontrol show node "${nodes%%$'\n'*}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # so that two jobs on one node do not collide
# New at every start: messages between the nodes from an earlier start no longer count.
LAUNCH_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
export MAIN_ADDRESS MAIN_PORT LAUNCH_ID

# In an array the last task's SLURM_JOB_ID is that of the array: a signal would reach all tasks.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# USR1: the time is nearly up (`--signal`). dpo-dist saves on SIGTERM, which scancel sends to the
# processes of the step; srun itself would take a SIGTERM as an order to kill them.
out_of_time=no
stop() {
  out_of_time=yes
  scancel --signal=TERM "$job"
}
trap stop USR1
# TERM: scancel, or the end of a preemption's grace time, at whose beginning Slurm has told the step.
trap : TERM

# run_step COMMAND...: run it on every node of the job, and leave with its exit code.
run_step() {
  # No MPI: accelerate would take its variables for a launcher's. Not --kill-on-bad-exit, and a
  # --wait after which all nodes have missed one that failed: they would end of srun's SIGTERM,
  # and not with the exit code that says why.
  srun --mpi=none --wait=360 "$@" &
  local step=$! status
  wait "$step"
  while kill -0 "$step" 2> /dev/null; do # bash stops waiting when a trap is run
    wait "$step"
  done
  wait "$step" # bash remembers the exit code
  status=$?
  requeue_if_stopped "$status"
  exit "$status"
}

# requeue_if_stopped STATUS: what was stopped goes on later, under the same number.
requeue_if_stopped() {
  case $1 in
    0 | 2) return ;; # done before the signal; bad input, which another try would meet again
    75 | 143) ;; # stopped by a SIGTERM, whoever has sent it: a preemption that leaves time to save
    *) [ "$out_of_time" = yes ] || return ;;
  esac
  # scancel ends a job for good. Slurm has taken it out of those that run before it signals.
  [ "$(squeue --noheader --jobs "$job" --format=%T)" = RUNNING ] || return
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    echo "stopped with exit code $1; the job is requeued"
    scontrol requeue "$job"
  else
    echo "stopped with exit code $1 after 100 starts; not requeued" >&2
  fi
}
