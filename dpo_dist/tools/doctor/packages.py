"""Checks of the installed packages: tested versions, and builds that fit this machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from dpo_dist.system.machine import gpus
from dpo_dist.tools.doctor.findings import Finding, State

# pip may install their CUDA builds next to a CPU build of torch; importing models then fails.
_TRAPS = ("torchvision", "torchaudio", "torchcodec")
# The oldest driver series by major version of CUDA:
# https://docs.nvidia.com/deploy/cuda-compatibility
_DRIVER_OF_CUDA = {13: 580, 12: 525}


def versions() -> Iterator[tuple[str, Finding]]:
    """One finding per package for which pyproject.toml gives a range of versions. A package of an
    extra counts if it is installed; those for development never do."""
    for requirement in map(Requirement, metadata.requires("dpo_dist") or []):
        marker, name, wanted = requirement.marker, requirement.name, requirement.specifier
        if not wanted or (marker and marker.evaluate({"extra": "dev"})):
            continue
        advice = f"pip install {shlex.quote(f'{name}{wanted}')}"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            if marker is None:
                yield name, Finding("failed", "is not installed", advice)
            continue
        if wanted.contains(found, prereleases=True):
            yield name, Finding("ok", found)
        else:
            # A package of an extra may be installed for other reasons.
            state: State = "failed" if marker is None else "warning"
            yield name, Finding(state, f"{found}; needed: {wanted}", advice)


def companions() -> Iterator[tuple[str, Finding]]:
    """torchvision and similar packages: not needed, and harmful if they do not fit torch."""
    for name in _TRAPS:
        if find_spec(name) is None:
            continue
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            yield name, Finding("ok", f"{metadata.version(name)}, compatible with torch")
            continue
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        advice = f"dpo_dist does not need it: pip uninstall {name}"
        yield name, Finding("failed", f"is not compatible with torch ({last})", advice)


def torch_build() -> Finding:
    """Whether torch's build fits the driver. Reads torch's files, since importing takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return Finding("failed", "torch is not installed")
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    devices = gpus()
    return judge_build(match[1] if match else None, devices[0].driver if devices else None)


def judge_build(cuda: str | None, driver: str | None) -> Finding:
    """The finding for torch's CUDA version and the driver's; None: a CPU build, no driver."""
    if driver is None:
        return Finding("ok", f"{f'CUDA {cuda}' if cuda else 'CPU'} build, no GPU on this machine")
    if cuda is None:
        text = f"CPU build on a machine with GPUs (driver {driver})"
        return Finding("failed", text, "Install requirements/cuda.lock")
    oldest = _DRIVER_OF_CUDA.get(int(cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0]) < oldest:
        advice = f"Use driver series {oldest} or later"
        return Finding("failed", f"CUDA {cuda} with driver {driver}", advice)
    return Finding("ok", f"CUDA {cuda}, driver {driver}")
