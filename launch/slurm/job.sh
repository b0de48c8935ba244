# shellcheck shell=bash disable=SC1090,SC1091
# Sourced by every job of incident-triage: sets up the environment, stops and requeues the job.
source .venv/bin/activate
set -uo pipefail # only now, because scripts of a site may use unset variables
command -v dpo-dist > /dev/null || {
  echo "dpo-dist was not found on $(hostname): use --setup to make it available" >&2
  exit 2
}

# The arguments of every command of the run.
# shellcheck disable=SC2034
run=(recipes/incident_triage/run.yaml --set sft.global_batch_size=16 --set sft.micro_batch_size=1 --set train.global_batch_size=16 --set train.micro_batch_size=1)

# Since Slurm 22.05 srun does not inherit it: a task would be bound to one core.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The address of node 0 for training jobs: its NodeAddr in slurm.conf, by default its name. Looked up
# here, because a container may lack scontrol.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_ADDRESS=$(scontrol show node "${nodes%%$'\n'*}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
MAIN_PORT=$((20000 + SLURM_JOB_ID % 20000)) # different for two jobs on one node
# New at every start, so that nodes ignore messages of an earlier start.
LAUNCH_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
export MAIN_ADDRESS MAIN_PORT LAUNCH_ID

# The last task of an array has the array's SLURM_JOB_ID: a signal to it would reach all tasks.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# USR1: the time limit is near (`--signal`). dpo-dist saves on SIGTERM, which scancel sends to the
# processes of the step. A SIGTERM to srun itself would make srun kill them.
out_of_time=no
stop() {
  out_of_time=yes
  scancel --signal=TERM "$job"
}
trap stop USR1
# TERM: scancel, or the end of a preemption's grace time. Slurm has already signalled the step.
trap : TERM

# run_step COMMAND...: runs it on every node of the job, and exits with its exit code.
run_step() {
  # --mpi=none: accelerate would mistake MPI's variables for a launcher's. No --kill-on-bad-exit, and
  # a --wait longer than dpo-dist's own time limits for lost nodes: if srun ended the nodes with
  # SIGTERM, their exit codes would not show the cause.
  srun --mpi=none --wait=360 "$@" &
  local step=$! status
  wait "$step"
  while kill -0 "$step" 2> /dev/null; do # a trap interrupts wait
    wait "$step"
  done
  wait "$step" # again returns the exit code
  status=$?
  requeue_if_stopped "$status"
  exit "$status"
}

# requeue_if_stopped STATUS: requeues a stopped job, which keeps its job id.
requeue_if_stopped() {
  case $1 in
    0 | 2) return ;; # complete; bad input, which would fail again
    75 | 143) ;; # stopped by SIGTERM, e.g. by a preemption with a grace time
    *) [ "$out_of_time" = yes ] || return ;;
  esac
  # No requeue after scancel: Slurm changes the job's state before it sends the signal.
  [ "$(squeue --noheader --jobs "$job" --format=%T)" = RUNNING ] || return
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    echo "stopped with exit code $1; the job is requeued"
    scontrol requeue "$job"
  else
    echo "stopped with exit code $1 after 100 starts; not requeued" >&2
  fi
}
