"""The target `kubernetes`: a manifest for each stage, what they share, and `submit.sh`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dpo_dist.errors import ConfigError
from dpo_dist.tools.launch.images import check_image
from dpo_dist.tools.launch.kubernetes.submission import KubernetesOptions, Submission
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.manifests import to_yaml
from dpo_dist.tools.launch.render import fill


@dataclass(frozen=True)
class Kubernetes(KubernetesOptions):
    """A cluster. `trainer` runs a training on several nodes: Kubeflow's trainer, or a plain job
    that `submit.sh` starts again. Without a `pvc` one of `storage` is made, ReadWriteMany;
    `secret` holds the keys. `cpus` and `memory` (GiB) are for each GPU."""

    name: ClassVar[str] = "kubernetes"

    def __post_init__(self) -> None:
        check_image(self.image)
        for name, least in (("cpus", 1), ("memory", 9)):  # /dev/shm is part of the memory
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least {least}")

    def files(self, layout: Layout) -> dict[str, str]:
        """Names carry a digest of all that is submitted: what has changed is other jobs, and no
        job that has run before is taken for them."""
        digest = hashlib.sha256(json.dumps(self._files(layout, "")).encode()).hexdigest()
        return self._files(layout, digest[:8])

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        return ["bash", str(folder / "submit.sh")]

    def _files(self, layout: Layout, digest: str) -> dict[str, str]:
        submission = Submission(self, layout, digest)
        stages = layout.stages()
        manifests = {f"{stage.name}.yaml": submission.manifests(stage) for stage in stages}
        script = fill(
            "kubernetes/submit.sh.j2",
            run=layout.name,
            submission=submission.name,
            namespace=self.namespace,
            stages=[(s.name, submission.job_kind(s), submission.attempts(s)) for s in stages],
        )
        return {
            "shared.yaml": to_yaml(submission.shared()),
            **{name: to_yaml(documents) for name, documents in manifests.items()},
            "submit.sh": script,
        }
