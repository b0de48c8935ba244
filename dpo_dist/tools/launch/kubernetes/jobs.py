"""Jobs: one pod, one for each shard, or one for each node of a training."""

from __future__ import annotations

from dpo_dist.errors import Preempted, UserError
from dpo_dist.tools.launch.kubernetes.pods import Manifest

RETRIES = 3  # of a pod that fails for no known reason
KEPT_SECONDS = 7 * 24 * 3600  # then the cluster forgets a job that has ended; the volume does not
# Stopped and saved; no place for the other nodes (the code of `timeout`); and ended by SIGTERM, to
# which a phase without workers has no answer.
STOPPED_CODES = (Preempted.exit_code, 124, 143)

BAD_INPUT = {
    "action": "FailJob",
    "onExitCodes": {"operator": "In", "values": [UserError.exit_code]},
}
DISRUPTED = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
STOPPED = {"onExitCodes": {"operator": "In", "values": list(STOPPED_CODES)}}
# What the input has to change for fails at once. Who was stopped comes again, as often as it
# happens; other failures count.
POLICY = {
    "rules": [BAD_INPUT, {"action": "Ignore", **DISRUPTED}, {"action": "Ignore", **STOPPED}],
}


def single_job(name: str, labels: dict[str, str], pod: Manifest) -> Manifest:
    """One pod, which goes on where the one before it was stopped."""
    return _job(name, labels, {"backoffLimit": RETRIES, "podFailurePolicy": POLICY}, pod)


def sharded_job(name: str, labels: dict[str, str], pod: Manifest, shards: int) -> Manifest:
    """A pod for each shard; one that fails is tried again by itself, and the others go on."""
    spec = {
        "completionMode": "Indexed",
        "completions": shards,
        "parallelism": shards,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": POLICY,
    }
    return _job(name, labels, spec, pod)


def gang_job(name: str, labels: dict[str, str], pod: Manifest, nodes: int) -> Manifest:
    """A pod for each node of a training. When one ends, the others cannot go on: the job fails
    as a whole, and whoever has submitted it starts all of them again."""
    spec = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [BAD_INPUT]},
    }
    return _job(name, labels, spec, pod)


def headless_service(name: str, labels: dict[str, str], job: str, port: int) -> Manifest:
    """Names for the pods of a job, `<job>-<index>.<service>`, before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job},
            "ports": [{"name": "rendezvous", "port": port}],
        },
    }


def _job(name: str, labels: dict[str, str], spec: Manifest, pod: Manifest) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            **spec,
            # Not while the old one still saves: both would want the same directory.
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": pod,
        },
    }
