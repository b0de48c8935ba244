"""A training on several nodes as a TrainJob of Kubeflow's trainer with its own runtime.

The runtime is a JobSet: if a node is lost, the cluster itself restarts all nodes.
"""

from __future__ import annotations

from dpo_dist.errors import UserError
from dpo_dist.tools.launch.kubernetes.jobs import BAD_INPUT, DISRUPTED, STOPPED, STOPPED_CODES
from dpo_dist.tools.launch.kubernetes.pods import CONTAINER, PREFLIGHT, Manifest, manifest

GROUP = "trainer.kubeflow.org"
API = f"{GROUP}/v1alpha1"
# Variables that the trainer sets.
RANK, HOST, PORT = "$(PET_NODE_RANK)", "$(PET_MASTER_ADDR)", "$(PET_MASTER_PORT)"
RESTARTS = 5  # not counting restarts after a preemption

# The JobSet sees a failure's exit code only in the message of the job's condition.
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
    """The prefix of the pods' names; their index follows."""
    return f"{train_job}-{CONTAINER}-0"


def train_job(name: str, labels: dict[str, str], pod: Manifest, nodes: int) -> list[Manifest]:
    """The runtime, which describes the nodes, and the job, which sets their number."""
    node = {
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [BAD_INPUT, *({"action": "FailJob", **rule} for rule in (DISRUPTED, STOPPED))]
        },
        "podReplacementPolicy": "Failed",
        "template": pod,
    }
    replicated = {
        "name": CONTAINER,
        "replicas": 1,
        "template": {
            "metadata": {"labels": {f"{GROUP}/trainjob-ancestor-step": "trainer"}},
            "spec": node,
        },
    }
    # The trainer sets its variables in the container `node`, and in these.
    injection = {"targets": [{"jobName": CONTAINER, "containerNames": [PREFLIGHT]}]}
    runtime = {
        "mlPolicy": {"numNodes": nodes, "torch": {"envInjection": injection}},
        "template": {"spec": {"failurePolicy": FAILURE_POLICY, "replicatedJobs": [replicated]}},
    }
    job = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": name},
        # Without this section the trainer assigns no ranks.
        "trainer": {"numNodes": nodes},
    }
    return [
        manifest(API, "TrainingRuntime", name, labels, spec=runtime),
        manifest(API, "TrainJob", name, labels, spec=job),
    ]
