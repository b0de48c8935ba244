"""One machine with a container engine: the script of the target `local`, in the image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from dpo_dist.tools.launch.images import check_image, dns_name, inside
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.local import Local
from dpo_dist.tools.launch.manifests import to_yaml

RUNS = PurePosixPath("/workspace/runs")
SCRIPT = PurePosixPath("/etc/dpo-dist/local.sh")


@dataclass(frozen=True)
class Compose:
    """Docker Compose, or what understands its files: a service for the GPUs, which runs `image`,
    and one without them, which runs `cpu_image`."""

    name: ClassVar[str] = "compose"
    image: str
    cpu_image: str

    def __post_init__(self) -> None:
        for image in (self.image, self.cpu_image):
            check_image(image)

    def files(self, layout: Layout) -> dict[str, str]:
        there = inside(layout, RUNS)
        gpus = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        reserved = {"deploy": {"resources": {"reservations": {"devices": [gpus]}}}}
        services = {
            "gpu": _service(there, self.image) | reserved,
            "cpu": _service(there, self.cpu_image),
        }
        project = {
            "name": dns_name(layout.name),
            # Neither starts by itself: `docker compose run gpu`, or `cpu`.
            "services": {name: it | {"profiles": [name]} for name, it in services.items()},
            "configs": {
                "script": {"file": "./local.sh"},
                "run-file": {"file": f"./{layout.run_file.name}"},
            },
            "volumes": {"runs": {}, "cache": {}},
        }
        return {
            "compose.yaml": to_yaml([project]),
            layout.run_file.name: layout.run_file.read_text(encoding="utf-8"),
            **Local().files(there),
        }

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        compose = ["docker", "compose", "--file", str(folder / "compose.yaml")]
        return [*compose, "run", "--rm", "gpu"]


def _service(there: Layout, image: str) -> dict[str, Any]:
    return {
        "image": image,
        "entrypoint": ["tini", "--"],
        "command": ["bash", str(SCRIPT)],
        # Without a value: what the environment of `docker compose` has, or nothing.
        "environment": dict.fromkeys(there.config.key_variables),
        "user": "10001:10001",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "shm_size": "8gb",
        "stop_grace_period": "15m",  # training saves after SIGTERM
        "configs": [
            {"source": "script", "target": str(SCRIPT)},
            # Into the recipe's folder, from where the run file names its data.
            {"source": "run-file", "target": str(there.run_file)},
        ],
        "volumes": [f"runs:{RUNS}", "cache:/cache"],
    }
