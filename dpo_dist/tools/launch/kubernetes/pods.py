"""The pod template of all jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

Manifest = dict[str, Any]

VOLUME = PurePosixPath("/shared")  # the claim: runs and the download cache
# Downloads and compiled kernels, in folders of the cache: a new pod compiles nothing again. The
# image has the same variables (Dockerfile).
CACHES = {
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}
SETTINGS = PurePosixPath("/etc/dpo-dist")  # the ConfigMap: run file, accelerate configurations
USER = 10001  # of the image
GPU = "nvidia.com/gpu"
CONTAINER = "node"  # the name that Kubeflow's trainer expects
PLACES, PREFLIGHT = "places", "preflight"  # init containers
SHARED_MEMORY = "8Gi"  # for NCCL and data loaders; counts towards the pod's memory limit

# After SIGTERM a training finishes its step and saves; other phases have their records on disk.
TRAINING_GRACE_SECONDS = 900
GRACE_SECONDS = 60


@dataclass(frozen=True)
class PodSettings:
    """The settings of all pods of a run. `config_map`, `claim` and `secret` are names of objects;
    the secret holds `keys` by their environment variables. `run_file` is the run file's path in the
    pods. A pod gets `cpus` and `memory` (GiB) per GPU, and the same without a GPU."""

    image: str
    config_map: str
    claim: str
    secret: str
    keys: Sequence[str]
    run_file: PurePosixPath
    workdir: PurePosixPath
    cpus: int
    memory: int


def manifest(api: str, kind: str, name: str, labels: dict[str, str], **content: object) -> Manifest:
    """An object of the cluster; `api` is its `apiVersion`."""
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def pod_template(
    settings: PodSettings,
    command: Sequence[str],
    labels: dict[str, str],
    *,
    gpus: int = 0,
    trains: bool = False,
    environment: Sequence[Manifest] = (),
    init: Mapping[str, Sequence[str]] | None = None,
    subdomain: str | None = None,
) -> Manifest:
    """A pod that runs a command. `init` has the commands of the init containers by name.
    Kubernetes replaces `$(NAME)` in commands by the container's variable."""
    spec: Manifest = {
        "restartPolicy": "Never",  # the job's failure policy decides about a new pod
        "automountServiceAccountToken": False,
        # Otherwise vLLM would read variables of Services, such as VLLM_PORT, as its settings.
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
        "containers": [_container(settings, CONTAINER, command, gpus, environment)],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "settings", "configMap": {"name": settings.config_map}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
        ],
    }
    if init:
        # They run before the main container, so they can use the same GPUs and limits.
        spec["initContainers"] = [
            _container(settings, name, words, gpus, environment) for name, words in init.items()
        ]
    if gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if subdomain is not None:
        spec["subdomain"] = subdomain
    return {"metadata": {"labels": labels}, "spec": spec}


def _container(
    settings: PodSettings,
    name: str,
    command: Sequence[str],
    gpus: int,
    environment: Sequence[Manifest],
) -> Manifest:
    units = max(1, gpus)
    resources = {"cpu": str(units * settings.cpus), "memory": f"{units * settings.memory}Gi"}
    if gpus:
        resources[GPU] = str(gpus)
    secret = {"name": settings.secret, "optional": True}
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tini", "--"],
        "args": list(command),
        "workingDir": str(settings.workdir),
        "env": [
            *(
                {"name": name, "value": str(VOLUME / "cache" / folder)}
                for name, folder in CACHES.items()
            ),
            # A key is optional in the secret, because a run that needs it reports its absence.
            *(
                {"name": key, "valueFrom": {"secretKeyRef": {**secret, "key": key}}}
                for key in settings.keys
            ),
            *environment,
        ],
        # With requests equal to limits, a full node evicts this pod last.
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "shared", "mountPath": str(VOLUME)},
            {"name": "settings", "mountPath": str(SETTINGS), "readOnly": True},
            # In the recipe's folder, because paths of data are relative to the run file.
            {
                "name": "settings",
                "mountPath": str(settings.run_file),
                "subPath": settings.run_file.name,
                "readOnly": True,
            },
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
