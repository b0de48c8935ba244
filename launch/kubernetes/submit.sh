#!/usr/bin/env bash
# Runs the phases of incident-triage on Kubernetes in order. Made by `dpo-dist launch kubernetes`.
# You can stop this script and start it again: jobs continue without it, completed jobs are skipped,
# and failed jobs are restarted and resume from their records.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")"
kubectl=(kubectl)
submission=incident-triage-9cef1e73
poll=${POLL_SECONDS:-15}

# state KIND/NAME: prints a job's conditions ("Complete=...", "Failed=...") or "absent".
state() {
  local conditions='{range .status.conditions[?(@.status=="True")]}{.type}={.reason} {end}'
  local answer
  answer=$("${kubectl[@]}" get "$1" --ignore-not-found --output "jsonpath={.kind} $conditions") || return
  echo "${answer:-absent}"
}

# wait_for KIND/NAME: waits until a job is complete or failed. `kubectl wait` waits for one condition
# only, and ends with its connection.
wait_for() {
  local now
  while sleep "$poll"; do
    now=$(state "$1") || continue # the API server is briefly unavailable
    case $now in
      absent) echo "$1 has been deleted" >&2; return 1 ;;
      *Failed=*) echo "$1: $now" >&2; return 1 ;;
      *Complete=*) return 0 ;;
    esac
  done
}

# stage NAME KIND ATTEMPTS
stage() {
  local job=$2/$submission-$1 attempt before
  for ((attempt = 1; attempt <= $3; attempt++)); do
    before=$(state "$job")
    case $before in
      *Complete=*)
        echo "$1: complete"
        return ;;
      *Failed=*) "${kubectl[@]}" delete --filename "$1.yaml" --wait ;;
    esac
    echo "$1: $job"
    "${kubectl[@]}" apply --filename "$1.yaml"
    if wait_for "$job"; then
      echo "$1: complete"
      return
    fi
    case $(state "$job") in *PodFailurePolicy*) break ;; esac # bad input
  done
  echo "$1 failed; the last output of its pods:" >&2
  "${kubectl[@]}" logs --prefix --tail 20 --ignore-errors --max-log-requests 100 \
    --selector "app.kubernetes.io/instance=$submission,app.kubernetes.io/component=$1" >&2 || true
  exit 1
}

"${kubectl[@]}" apply --filename shared.yaml
stage sft trainjob 1
stage sample job 1
stage judge job 1
stage train trainjob 1
stage evaluate job 1
stage score job 1
stage report job 1
echo "done: incident-triage"
