"""Jobs with one pod, a pod per shard, or a pod per node of a training."""

from __future__ import annotations

from dpo_dist.errors import Preempted, UserError
from dpo_dist.tools.launch.kubernetes.pods import Manifest, manifest

RETRIES = 3  # of a pod after an unknown failure
KEPT_SECONDS = 7 * 24 * 3600  # then the cluster deletes a finished job; the volume stays
# Stopped and saved; other nodes were not scheduled in time (exit code of `timeout`); ended by
# SIGTERM, which a phase without workers does not handle.
STOPPED_CODES = (Preempted.exit_code, 124, 143)

BAD_INPUT = {
    "action": "FailJob",
    "onExitCodes": {"operator": "In", "values": [UserError.exit_code]},
}
DISRUPTED = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
STOPPED = {"onExitCodes": {"operator": "In", "values": list(STOPPED_CODES)}}
# Bad input fails the job at once. Stopped pods restart without limit; other failures use retries.
POLICY = {
    "rules": [BAD_INPUT, {"action": "Ignore", **DISRUPTED}, {"action": "Ignore", **STOPPED}],
}


def single_job(name: str, labels: dict[str, str], pod: Manifest) -> Manifest:
    """A job with one pod. A new pod resumes where the previous one stopped."""
    return _job(name, labels, pod, {"backoffLimit": RETRIES, "podFailurePolicy": POLICY})


def sharded_job(name: str, labels: dict[str, str], pod: Manifest, shards: int) -> Manifest:
    """A job with a pod per shard. A failed pod is retried alone, and the others continue."""
    retries = {"backoffLimitPerIndex": RETRIES, "podFailurePolicy": POLICY}
    return _job(name, labels, pod, retries, pods=shards)


def gang_job(name: str, labels: dict[str, str], pod: Manifest, nodes: int) -> Manifest:
    """A job with a pod per node of a training. If a pod ends, the others cannot continue: the whole
    job fails, and `submit.sh` starts it again."""
    retries = {"backoffLimit": 0, "podFailurePolicy": {"rules": [BAD_INPUT]}}
    return _job(name, labels, pod, retries, pods=nodes)


def headless_service(name: str, labels: dict[str, str], port: int) -> Manifest:
    """Gives the pods of the job `name` the host names `<name>-<index>.<name>` at once."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": name},
        "ports": [{"name": "rendezvous", "port": port}],
    }
    return manifest("v1", "Service", name, labels, spec=spec)


def _job(
    name: str, labels: dict[str, str], pod: Manifest, retries: Manifest, pods: int | None = None
) -> Manifest:
    indexed = {"completionMode": "Indexed", "completions": pods, "parallelism": pods}
    spec = {
        **(indexed if pods else {}),
        **retries,
        # No new pod while the old one still saves to the same directory.
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "template": pod,
    }
    return manifest("batch/v1", "Job", name, labels, spec=spec)
