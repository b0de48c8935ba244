"""Container images, and where a run's files lie in them."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from dpo_dist.errors import ConfigError
from dpo_dist.launching.layout import Layout

WORKDIR = PurePosixPath("/workspace")  # the Dockerfile's


def check_image(image: str) -> None:
    """Raises `ConfigError` for an image that may be another one tomorrow."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest"):
        raise ConfigError(
            f"--image {image}: name its version (or digest), so that every job of the run has "
            "the same one"
        )


def path_in_image(layout: Layout) -> PurePosixPath:
    """The run file where the layout's jobs start: at the same place below it as here.

    Raises `ConfigError` for a run file outside of the working directory.
    """
    relative = os.path.relpath(layout.run_file.resolve(), Path.cwd())
    if relative.startswith(".."):
        raise ConfigError(
            f"{layout.run_file} lies outside of the working directory, so that its place in the "
            "image is unknown: start from a folder above it, the one that the image's "
            f"{layout.workdir} is made of"
        )
    return PurePosixPath(layout.workdir) / PurePosixPath(Path(relative).as_posix())
