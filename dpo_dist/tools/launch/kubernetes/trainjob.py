"""A training on several nodes as a TrainJob of Kubeflow's trainer, with a runtime of its own.

The runtime is a JobSet: it starts all nodes again when one of them is lost, without anybody
watching from outside the cluster.
"""

from __future__ import annotations

from dpo_dist.errors import UserError
from dpo_dist.tools.launch.kubernetes.jobs import BAD_INPUT, DISRUPTED, STOPPED, STOPPED_CODES
from dpo_dist.tools.launch.kubernetes.pods import CONTAINER, PREFLIGHT, Manifest

GROUP = "trainer.kubeflow.org"
# The variables that the trainer gives to the container `node`.
RANK, HOST, PORT = "$(PET_NODE_RANK)", "$(PET_MASTER_ADDR)", "$(PET_MASTER_PORT)"
RESTARTS = 5  # besides those after a preemption

# A job tells a JobSet why it failed in its condition's words: the exit code is among them.
FAILURE_POLICY = {
    "maxRestarts": RESTARTS,
    "rules": [
        {
            "name": "badInput",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [rf"exit code {UserError.exit_code}\b"],
        },
        {
            "name": "stopped",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [
                rf"exit code ({'|'.join(map(str, STOPPED_CODES))})\b",
                "DisruptionTarget",
            ],
        },
    ],
}


def pod_name(train_job: str) -> str:
    """What the names of its pods begin with; their index follows."""
    return f"{train_job}-{CONTAINER}-0"


def train_job(name: str, labels: dict[str, str], pod: Manifest, nodes: int) -> list[Manifest]:
    """The runtime, which says how the nodes run, and the job, which says how many there are."""
    job = {
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                BAD_INPUT,
                {"action": "FailJob", **DISRUPTED},
                {"action": "FailJob", **STOPPED},
            ]
        },
        "podReplacementPolicy": "Failed",
        "template": pod,
    }
    replicated = {
        "name": CONTAINER,
        "replicas": 1,
        "template": {
            "metadata": {"labels": {f"{GROUP}/trainjob-ancestor-step": "trainer"}},
            "spec": job,
        },
    }
    # Else the trainer tells only the container `node` who it is.
    told = {"targets": [{"jobName": CONTAINER, "containerNames": [PREFLIGHT]}]}
    runtime = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "mlPolicy": {"numNodes": nodes, "torch": {"envInjection": told}},
            "template": {"spec": {"failurePolicy": FAILURE_POLICY, "replicatedJobs": [replicated]}},
        },
    }
    train = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": name},
            # Without this section the trainer gives the nodes no ranks.
            "trainer": {"numNodes": nodes},
        },
    }
    return [runtime, train]
