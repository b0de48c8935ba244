"""The target `kubernetes`: a manifest per stage, a manifest of what they share, and `submit.sh`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from dpo_dist.errors import ConfigError
from dpo_dist.system.options import Option
from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.kubernetes import trainjob
from dpo_dist.tools.launch.kubernetes.jobs import (
    gang_job,
    headless_service,
    sharded_job,
    single_job,
)
from dpo_dist.tools.launch.kubernetes.pods import (
    PLACES,
    PREFLIGHT,
    SETTINGS,
    VOLUME,
    Manifest,
    PodSettings,
    manifest,
    pod_template,
)
from dpo_dist.tools.launch.layout import Layout, Stage, check_image, dns_name, inside
from dpo_dist.tools.launch.render import fill, to_yaml

PORT = 29500
GANG_ATTEMPTS = 6  # of a training on several nodes without Kubeflow's trainer
LONGEST_RUN = 28  # characters of the run's name in the names of pods, which have at most 63
# A pod's host name exists once the pod is scheduled. Each pod waits for the names of all others; if
# that takes too long, the job fails and frees its GPUs.
WAIT_FOR_NODES = 'for host; do until getent ahosts "$host" > /dev/null; do sleep 2; done; done'
PLACED_SECONDS = 1800
JOIN_SECONDS = 1800  # after that: a node may still be loading the image
POD_INDEX = "$(JOB_COMPLETION_INDEX)"
LAUNCH_ID = "$(LAUNCH_ID)"


@dataclass(frozen=True)
class Kubernetes:
    """A cluster, with or without Kubeflow's trainer."""

    name: ClassVar[str] = "kubernetes"
    image: Annotated[str, Option("image with its version or digest", "IMAGE")]
    namespace: Annotated[
        str | None, Option("namespace (default: that of kubectl's context)", "NAME")
    ] = None
    pvc: Annotated[
        str | None, Option("an existing ReadWriteMany claim (default: create one)", "NAME")
    ] = None
    storage_class: Annotated[
        str | None, Option("the created claim's storage class, with ReadWriteMany", "NAME")
    ] = None
    storage: Annotated[str, Option("size of the created claim", "SIZE")] = "500Gi"
    secret: Annotated[str, Option("secret that holds the API keys", "NAME")] = "dpo-dist-keys"
    trainer: Annotated[
        Literal["trainjob", "job"],
        Option("for several nodes: Kubeflow's TrainJob, or a plain Job that submit.sh restarts"),
    ] = "trainjob"
    cpus: Annotated[int, Option("CPUs per GPU, or of a pod without GPUs", "N")] = 8
    memory: Annotated[int, Option("GiB of memory per GPU, or of a pod without GPUs", "GIB")] = 64

    def __post_init__(self) -> None:
        check_image(self.image)
        for name, least in (("cpus", 1), ("memory", 9)):  # /dev/shm is part of the memory
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least {least}")

    def files(self, layout: Layout) -> dict[str, str]:
        """The manifests and the script. All names contain a digest of the content, so that changed
        settings make new jobs and never count as jobs that are complete."""
        digest = hashlib.sha256(json.dumps(self._files(layout, "")).encode()).hexdigest()
        return self._files(layout, digest[:8])

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "submit.sh")]

    def _files(self, layout: Layout, digest: str) -> dict[str, str]:
        manifests = _Manifests(self, layout, digest)
        stages = layout.stages()
        script = fill(
            "kubernetes/submit.sh.j2",
            run=layout.name,
            submission=manifests.name,
            namespace=self.namespace,
            stages=[(stage.name, *manifests.job(stage)) for stage in stages],
        )
        return {
            "shared.yaml": self._document(manifests.shared()),
            **{f"{stage.name}.yaml": self._document(manifests.of(stage)) for stage in stages},
            "submit.sh": script,
        }

    def _document(self, manifests: Sequence[Manifest]) -> str:
        """The manifests as YAML, in the user's namespace; by default that of kubectl's context."""
        if self.namespace is None:
            return to_yaml(manifests)
        namespace = {"namespace": self.namespace}
        return to_yaml([{**it, "metadata": {**it["metadata"], **namespace}} for it in manifests])


class _Manifests:
    """The objects of a layout in the cluster. Names start with the run's name and the digest."""

    def __init__(self, cluster: Kubernetes, layout: Layout, digest: str) -> None:
        run = dns_name(layout.name)
        self.name = f"{run[:LONGEST_RUN].rstrip('-')}-{digest}"
        self._cluster = cluster
        self._claim = cluster.pvc or f"{run[:50].rstrip('-')}-runs"
        self._files = {
            layout.run_file.name: layout.run_file.read_text(encoding="utf-8"),
            **accelerate_files(layout),
        }
        self._layout = inside(layout, VOLUME / "runs")
        self._settings = PodSettings(
            image=cluster.image,
            config_map=self.name,
            claim=self._claim,
            secret=cluster.secret,
            keys=layout.config.key_variables,
            run_file=PurePosixPath(self._layout.run_file),
            workdir=PurePosixPath(layout.workdir),
            cpus=cluster.cpus,
            memory=cluster.memory,
        )

    def shared(self) -> list[Manifest]:
        """The ConfigMap with the run's files and, unless the user has one, the volume."""
        config_map = manifest(
            "v1", "ConfigMap", self.name, self._labels(), immutable=True, data=self._files
        )
        return [config_map] if self._cluster.pvc else [self._volume(), config_map]

    def of(self, stage: Stage) -> list[Manifest]:
        """The objects of a stage; its job is the last one."""
        name, labels = f"{self.name}-{stage.name}", self._labels(stage)
        if stage.nodes > 1:
            return self._gang(stage, name, labels)
        command = self._command(stage)
        if stage.shards:
            command += ["--shard", f"{POD_INDEX}/{stage.shards}"]
        init = {PREFLIGHT: self._preflight()} if stage.trains else {}
        pod = pod_template(
            self._settings, command, labels, gpus=stage.gpus, trains=stage.trains, init=init
        )
        if stage.shards:
            return [sharded_job(name, labels, pod, stage.shards)]
        return [single_job(name, labels, pod)]

    def job(self, stage: Stage) -> tuple[str, int]:
        """(kubectl's name for the kind of job, how often `submit.sh` starts it): more than once if
        the job cannot restart all of its nodes itself."""
        if stage.nodes == 1:
            return "job", 1
        return ("job", GANG_ATTEMPTS) if self._cluster.trainer == "job" else ("trainjob", 1)

    def _gang(self, stage: Stage, name: str, labels: dict[str, str]) -> list[Manifest]:
        """The objects of a training on several nodes."""
        by_trainer = self._cluster.trainer == "trainjob"
        rank, main, port = (
            (trainjob.RANK, trainjob.HOST, trainjob.PORT)
            if by_trainer
            else (POD_INDEX, f"{name}-0.{name}", str(PORT))
        )
        pods = trainjob.pod_name(name) if by_trainer else name
        hosts = [f"{pods}-{index}.{name}" for index in range(stage.nodes)]
        nodes = [
            *("--join-timeout", str(JOIN_SECONDS)),
            *("--nodes", str(stage.nodes), "--node-rank", rank),
            *("--main-address", main, "--main-port", port, "--launch-id", LAUNCH_ID),
        ]
        # The nodes of one launch are pods of one Job object; every restart creates a new Job.
        field = "metadata.labels['batch.kubernetes.io/controller-uid']"
        launch_id = {"name": "LAUNCH_ID", "valueFrom": {"fieldRef": {"fieldPath": field}}}
        wait = ["timeout", str(PLACED_SECONDS), "bash", "-c", WAIT_FOR_NODES, PLACES, *hosts]
        pod = pod_template(
            self._settings,
            [*self._command(stage), *nodes],
            labels,
            gpus=stage.gpus,
            trains=True,
            environment=[launch_id],
            init={PLACES: wait, PREFLIGHT: [*self._preflight(), *nodes]},
            subdomain=None if by_trainer else name,
        )
        if by_trainer:
            return trainjob.train_job(name, labels, pod, stage.nodes)
        service = headless_service(name, labels, PORT)
        return [service, gang_job(name, labels, pod, stage.nodes)]

    def _command(self, stage: Stage) -> list[str]:
        return _escaped(self._layout.command(stage, Path(SETTINGS)))

    def _preflight(self) -> list[str]:
        arguments = self._layout.preflight_arguments(Path(SETTINGS))
        return _escaped(["dpo-dist", "preflight", *arguments])

    def _volume(self) -> Manifest:
        spec: Manifest = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": self._cluster.storage}},
        }
        if self._cluster.storage_class is not None:
            spec["storageClassName"] = self._cluster.storage_class
        labels = {"app.kubernetes.io/name": "dpo-dist"}
        return manifest("v1", "PersistentVolumeClaim", self._claim, labels, spec=spec)

    def _labels(self, stage: Stage | None = None) -> dict[str, str]:
        labels = {"app.kubernetes.io/name": "dpo-dist", "app.kubernetes.io/instance": self.name}
        return labels | ({"app.kubernetes.io/component": stage.name} if stage else {})


def _escaped(words: Sequence[str]) -> list[str]:
    """The words, with `$(` escaped: Kubernetes must not replace the user's text by variables."""
    return [word.replace("$(", "$$(") for word in words]
