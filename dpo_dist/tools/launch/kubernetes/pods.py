"""The pod that every job of a run is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

Manifest = dict[str, Any]

VOLUME = PurePosixPath("/shared")  # the claim: runs, and what is downloaded
SETTINGS = PurePosixPath("/etc/dpo-dist")  # the ConfigMap: the run file, accelerate's files
USER = 10001  # the image's
GPU = "nvidia.com/gpu"
CONTAINER = "node"  # Kubeflow's trainer looks for this name
# Those that are done before that one starts, where nodes train together.
PLACES, PREFLIGHT = "places", "preflight"
SHARED_MEMORY = "8Gi"  # NCCL's and the data loaders'; it counts towards the pod's limit

# After SIGTERM training ends its step and saves; everything else has its records on disk.
TRAINING_GRACE_SECONDS = 900
GRACE_SECONDS = 60


@dataclass(frozen=True)
class Surroundings:
    """What the pods of a run have in common.

    `settings` is the name of the ConfigMap, `claim` of the shared volume, `secret` of the object
    that holds the `keys`, by the names of their variables; `run_file` is where the pods see the
    run file, `workdir` where they start. A pod gets `cpus` and `memory` (GiB) for every GPU,
    and as much when it has none.
    """

    image: str
    settings: str
    claim: str
    secret: str
    keys: Sequence[str]
    run_file: PurePosixPath
    workdir: PurePosixPath
    cpus: int
    memory: int


def pod_template(
    around: Surroundings,
    words: Sequence[str],
    labels: dict[str, str],
    *,
    gpus: int = 0,
    trains: bool = False,
    environment: Sequence[Manifest] = (),
    before: Mapping[str, Sequence[str]] | None = None,
    subdomain: str | None = None,
) -> Manifest:
    """A pod that runs a command, after those `before` it, by the names of their containers.
    `$(NAME)` in them stands for a variable of the container."""
    spec: Manifest = {
        "restartPolicy": "Never",  # the job starts another pod, or fails: its policy says which
        "automountServiceAccountToken": False,
        # Variables such as VLLM_PORT, made from the names of Services, are read by vLLM as its own.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TRAINING_GRACE_SECONDS if trains else GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(around, CONTAINER, words, gpus, environment)],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": around.claim}},
            {"name": "settings", "configMap": {"name": around.settings}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
        ],
    }
    if before:
        # With the same GPUs and the same limits, which they hand on.
        spec["initContainers"] = [
            _container(around, name, its_words, gpus, environment)
            for name, its_words in before.items()
        ]
    if gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if subdomain is not None:
        spec["subdomain"] = subdomain
    return {"metadata": {"labels": labels}, "spec": spec}


def _container(
    around: Surroundings,
    name: str,
    words: Sequence[str],
    gpus: int,
    environment: Sequence[Manifest],
) -> Manifest:
    resources = _resources(around, gpus)
    return {
        "name": name,
        "image": around.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tini", "--"],
        "args": list(words),
        "workingDir": str(around.workdir),
        "env": [
            {"name": "HF_HOME", "value": str(VOLUME / "cache" / "huggingface")},
            *(_key(name, around.secret) for name in around.keys),
            *environment,
        ],
        # Requests equal to limits: such a pod is the last one that a full node evicts.
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shared", "mountPath": str(VOLUME)},
            {"name": "settings", "mountPath": str(SETTINGS), "readOnly": True},
            # Into the recipe's folder, from where the run file names its data.
            {
                "name": "settings",
                "mountPath": str(around.run_file),
                "subPath": around.run_file.name,
                "readOnly": True,
            },
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }


def _resources(around: Surroundings, gpus: int) -> dict[str, str]:
    times = max(1, gpus)
    resources = {"cpu": str(times * around.cpus), "memory": f"{times * around.memory}Gi"}
    return resources | ({GPU: str(gpus)} if gpus else {})


def _key(name: str, secret: str) -> Manifest:
    """A variable from the secret; a run that needs it says so itself when it is not there."""
    return {
        "name": name,
        "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}},
    }
