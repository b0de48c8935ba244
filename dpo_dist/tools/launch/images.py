"""Container images, and a layout as it is seen from inside of one."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dpo_dist.errors import ConfigError
from dpo_dist.tools.launch.layout import Layout


def check_image(image: str) -> None:
    """Raises `ConfigError` for an image that may be another one tomorrow."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        raise ConfigError(
            f"image {image}: give its version (or digest), so that every job of the run uses the "
            "same image"
        )


def inside(layout: Layout, runs: PurePosixPath) -> Layout:
    """The layout for jobs in containers, which write their runs to `runs`: the run file lies at
    the same place below their working directory as it does here.

    Raises `ConfigError` for a run file outside of the working directory.
    """
    relative = os.path.relpath(layout.run_file.resolve(), Path.cwd())
    if relative.startswith(".."):
        raise ConfigError(
            f"{layout.run_file} lies outside the working directory, so its path in the containers "
            f"is unknown: run this from the directory that becomes {layout.workdir} in the "
            "containers"
        )
    run = layout.config.run.model_copy(update={"output_dir": Path(runs)})
    return replace(
        layout,
        run_file=layout.workdir / relative,
        config=layout.config.model_copy(update={"run": run}),
        overrides=(*layout.overrides, f"run.output_dir={runs}"),
    )


def dns_name(text: str) -> str:
    """A name as Kubernetes and Compose want it: a small letter, then letters, digits, hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if name[:1].isalpha() else f"run-{name}".rstrip("-")
