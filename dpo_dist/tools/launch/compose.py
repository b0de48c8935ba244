"""One machine with Docker Compose: runs the script of the target `local` in a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

from dpo_dist import __version__
from dpo_dist.system.options import Option
from dpo_dist.tools.launch.layout import Layout, check_image, dns_name, inside
from dpo_dist.tools.launch.local import Local
from dpo_dist.tools.launch.render import to_yaml

IMAGE = f"dpo-dist:{__version__}"
RUNS = PurePosixPath("/workspace/runs")
SCRIPT = PurePosixPath("/etc/dpo-dist/local.sh")


@dataclass(frozen=True)
class Compose:
    """Two services: `gpu` runs `image` with all GPUs, `cpu` runs `cpu_image` without GPUs."""

    name: ClassVar[str] = "compose"
    image: Annotated[str, Option("CUDA image, with its version", "IMAGE")] = IMAGE
    cpu_image: Annotated[str, Option("CPU image", "IMAGE")] = f"{IMAGE}-cpu"

    def __post_init__(self) -> None:
        for image in (self.image, self.cpu_image):
            check_image(image)

    def files(self, layout: Layout) -> dict[str, str]:
        contained = inside(layout, RUNS)
        gpus = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        deploy = {"resources": {"reservations": {"devices": [gpus]}}}
        project = {
            "name": dns_name(layout.name),
            # With profiles, `docker compose up` starts neither; `docker compose run gpu` does.
            "services": {
                "gpu": _service(contained, self.image, deploy=deploy, profiles=["gpu"]),
                "cpu": _service(contained, self.cpu_image, profiles=["cpu"]),
            },
            "configs": {
                "script": {"file": "./local.sh"},
                "run-file": {"file": f"./{layout.run_file.name}"},
            },
            "volumes": {"runs": {}, "cache": {}},
        }
        return {
            "compose.yaml": to_yaml([project]),
            layout.run_file.name: layout.run_file.read_text(encoding="utf-8"),
            **Local().files(contained),
        }

    def submission(self, folder: Path, layout: Layout) -> list[str]:
        compose = ["docker", "compose", "--file", str(folder / "compose.yaml")]
        return [*compose, "run", "--rm", "gpu"]


def _service(contained: Layout, image: str, **more: object) -> dict[str, object]:
    return {
        "image": image,
        "entrypoint": ["tini", "--"],
        "command": ["bash", str(SCRIPT)],
        # Without a value, Compose passes the variable of its own environment, if it is set.
        "environment": dict.fromkeys(contained.config.key_variables),
        "user": "10001:10001",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "shm_size": "8gb",
        "stop_grace_period": "15m",  # training saves after SIGTERM
        "configs": [
            {"source": "script", "target": str(SCRIPT)},
            # In the recipe's folder, because paths of data are relative to the run file.
            {"source": "run-file", "target": str(contained.run_file)},
        ],
        "volumes": [f"runs:{RUNS}", "cache:/cache"],
        **more,
    }
