"""A run's objects in a cluster: what they share, and those of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from dpo_dist.tools.launch.accelerate import accelerate_files
from dpo_dist.tools.launch.images import dns_name, inside
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
    Surroundings,
    pod_template,
)
from dpo_dist.tools.launch.layout import Layout, Stage

PORT = 29500
GANG_ATTEMPTS = 6  # of a training whose job cannot start all of its nodes again itself
LONGEST_RUN = 28  # what the names of its pods, of at most 63 characters, have room for
# A pod has a name once it has a place: those that were placed early wait here for the others,
# and give their GPUs back when it takes too long.
WAIT_FOR_NODES = 'for host; do until getent ahosts "$host" > /dev/null; do sleep 2; done; done'
PLACED_SECONDS = 1800
JOIN_SECONDS = 1800  # then: for a node that still loads the image
POD_INDEX = "$(JOB_COMPLETION_INDEX)"
LAUNCH_ID = "$(LAUNCH_ID)"


@dataclass(frozen=True)
class KubernetesOptions:
    """What is asked of a cluster, each as the option of its name says (target.py)."""

    image: str
    namespace: str | None = None
    pvc: str | None = None
    storage_class: str | None = None
    storage: str = "500Gi"
    secret: str = "dpo-dist-keys"
    trainer: Literal["trainjob", "job"] = "trainjob"
    cpus: int = 8
    memory: int = 64


class Submission:
    """A layout's objects, all named after the run and the digest of what is submitted."""

    def __init__(self, cluster: KubernetesOptions, layout: Layout, digest: str) -> None:
        run = dns_name(layout.name)
        self.name = f"{run[:LONGEST_RUN].rstrip('-')}-{digest}"
        self._cluster = cluster
        self._claim = cluster.pvc or f"{run[:50].rstrip('-')}-runs"
        self._files = {
            layout.run_file.name: layout.run_file.read_text(encoding="utf-8"),
            **accelerate_files(layout),
        }
        self._layout = inside(layout, VOLUME / "runs")
        self._around = Surroundings(
            image=cluster.image,
            settings=self.name,
            claim=self._claim,
            secret=cluster.secret,
            keys=layout.config.key_variables,
            run_file=PurePosixPath(self._layout.run_file),
            workdir=PurePosixPath(layout.workdir),
            cpus=cluster.cpus,
            memory=cluster.memory,
        )

    def shared(self) -> list[Manifest]:
        """The run's files, and the volume where nobody has made one."""
        settings: Manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "labels": self._labels()},
            "immutable": True,
            "data": self._files,
        }
        return self._placed([settings] if self._cluster.pvc else [self._volume(), settings])

    def manifests(self, stage: Stage) -> list[Manifest]:
        """The objects of a stage, its job last."""
        name, labels = self._job(stage), self._labels(stage)
        if stage.nodes > 1:
            return self._placed(self._gang(stage, name, labels))
        words = self._words(stage)
        if stage.shards:
            words += ["--shard", f"{POD_INDEX}/{stage.shards}"]
        before = {PREFLIGHT: self._preflight()} if stage.trains else {}
        pod = pod_template(
            self._around, words, labels, gpus=stage.gpus, trains=stage.trains, before=before
        )
        if stage.shards:
            return self._placed([sharded_job(name, labels, pod, stage.shards)])
        return self._placed([single_job(name, labels, pod)])

    def job_kind(self, stage: Stage) -> str:
        """What `kubectl` calls the stage's job."""
        return "trainjob" if stage.nodes > 1 and self._cluster.trainer == "trainjob" else "job"

    def attempts(self, stage: Stage) -> int:
        """How often `submit.sh` starts the stage's job, which else starts its pods again itself."""
        return GANG_ATTEMPTS if stage.nodes > 1 and self._cluster.trainer == "job" else 1

    def _gang(self, stage: Stage, name: str, labels: dict[str, str]) -> list[Manifest]:
        by_trainer = self._cluster.trainer == "trainjob"
        rank, main, port = (
            (trainjob.RANK, trainjob.HOST, trainjob.PORT)
            if by_trainer
            else (POD_INDEX, f"{name}-0.{name}", str(PORT))
        )
        pods = trainjob.pod_name(name) if by_trainer else name
        hosts = [f"{pods}-{index}.{name}" for index in range(stage.nodes)]
        together = [
            *("--join-timeout", str(JOIN_SECONDS)),
            *("--nodes", str(stage.nodes), "--node-rank", rank),
            *("--main-address", main, "--main-port", port, "--launch-id", LAUNCH_ID),
        ]
        # All nodes of one start are pods of one job object, and every start makes another one.
        field = "metadata.labels['batch.kubernetes.io/controller-uid']"
        started = {"name": "LAUNCH_ID", "valueFrom": {"fieldRef": {"fieldPath": field}}}
        pod = pod_template(
            self._around,
            [*self._words(stage), *together],
            labels,
            gpus=stage.gpus,
            trains=True,
            environment=[started],
            before={
                PLACES: [
                    *("timeout", str(PLACED_SECONDS)),
                    *("bash", "-c", WAIT_FOR_NODES, PLACES, *hosts),
                ],
                PREFLIGHT: [*self._preflight(), *together],
            },
            subdomain=None if by_trainer else name,
        )
        if by_trainer:
            return trainjob.train_job(name, labels, pod, stage.nodes)
        service = headless_service(name, labels, name, PORT)
        return [service, gang_job(name, labels, pod, stage.nodes)]

    def _words(self, stage: Stage) -> list[str]:
        return _literally(self._layout.command(stage, Path(SETTINGS)))

    def _preflight(self) -> list[str]:
        words = self._layout.preflight_words(Path(SETTINGS))
        return _literally(["dpo-dist", "preflight", *words])

    def _volume(self) -> Manifest:
        spec: Manifest = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": self._cluster.storage}},
        }
        if self._cluster.storage_class is not None:
            spec["storageClassName"] = self._cluster.storage_class
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self._claim, "labels": {"app.kubernetes.io/name": "dpo-dist"}},
            "spec": spec,
        }

    def _job(self, stage: Stage) -> str:
        return f"{self.name}-{stage.name}"

    def _labels(self, stage: Stage | None = None) -> dict[str, str]:
        labels = {"app.kubernetes.io/name": "dpo-dist", "app.kubernetes.io/instance": self.name}
        return labels | ({"app.kubernetes.io/component": stage.name} if stage else {})

    def _placed(self, manifests: Sequence[Manifest]) -> list[Manifest]:
        if (namespace := self._cluster.namespace) is None:
            return list(manifests)  # the one that kubectl's context names
        return [
            {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
            for manifest in manifests
        ]


def _literally(words: Sequence[str]) -> list[str]:
    """Words in which no variable of the container is meant."""
    return [word.replace("$(", "$$(") for word in words]
