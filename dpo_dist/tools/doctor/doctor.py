"""Checks of this machine's environment, and of what a run needs from it."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

from dpo_dist.config import TRACKER_KEYS, Resource
from dpo_dist.data.models import check_model, check_unquantized
from dpo_dist.errors import UserError
from dpo_dist.runs.run import Run
from dpo_dist.system.console import USUAL_KEYS, counted
from dpo_dist.system.machine import gpus
from dpo_dist.tools.doctor import environment, packages, placement, rdma
from dpo_dist.tools.doctor.findings import Finding

_MARKS = {"ok": "  ", "warning": "! ", "failed": "X "}


def examine(run: Run | None) -> list[tuple[str, Finding]]:
    """The findings about this machine and, if given, about the needs of a run."""
    return [*_environment(run), *(_run_file(run) if run else ())]


def to_terminal(findings: list[tuple[str, Finding]]) -> str:
    """One line per finding. Problems are marked, and their advice is on the next line."""
    width = max(len(name) for name, _ in findings)
    lines = []
    for name, finding in findings:
        lines.append(f"{_MARKS[finding.state]}{name:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  -> {finding.advice}")
    states = [finding.state for _, finding in findings]
    errors, warnings = states.count("failed"), states.count("warning")
    lines.append(f"{counted(errors, 'error')} (X), {counted(warnings, 'warning')} (!)")
    return "\n".join(lines)


def _environment(run: Run | None) -> Iterator[tuple[str, Finding]]:
    folder = run.config.run.output_dir if run else Path()
    yield "host", Finding("ok", f"{socket.gethostname()}, {platform.platform()}")
    yield "python", Finding("ok", platform.python_version())
    yield from packages.versions()
    yield from packages.companions()
    yield "torch build", packages.torch_build()
    yield "GPUs", environment.devices()
    yield "CUDA_VISIBLE_DEVICES", environment.visible_devices()
    yield "DS_ACCELERATOR", environment.deepspeed_accelerator()
    yield "memory", environment.memory()
    yield "/dev/shm", environment.shared_memory()
    yield "disk", environment.disk(folder)
    yield "file locks", environment.file_locks(folder)
    yield "TMPDIR", environment.temporary_folder()
    yield "model cache", environment.model_cache()
    yield "open files", environment.open_files()
    yield "locked memory", environment.locked_memory()
    yield "compiler", environment.compiler()
    yield "stale locks", environment.extension_locks()
    yield "launcher variables", environment.launcher_variables()
    yield "network variables", placement.network_variables()
    yield "RDMA", rdma.transport(several=False)
    yield "SLURM", placement.slurm()
    yield "keys", environment.key_variables(run.config.key_variables if run else USUAL_KEYS)


def _run_file(run: Run) -> Iterator[tuple[str, Finding]]:
    config = run.config
    try:
        check_model(config.model.base)
        if run.trainings:
            check_unquantized(config.model.base)
        yield "model", Finding("ok", config.model.base)
    except UserError as error:
        yield "model", Finding("failed", str(error), "Set model.base")
    for section in run.trainings.values():
        yield "accelerate_config", placement.training(section, gpus())
    resources: list[tuple[str, Resource, str]] = [
        *(("judge", judge, "Set it where the judging phases run") for judge in config.judges),
        *(("engine", engine, "Set it") for engine in config.engines),
    ]
    yield from dict.fromkeys(
        (name, finding)
        for name, resource, advice in resources
        for finding in _missing_keys(resource, advice)
    )
    for name in config.trackers:
        if (key := TRACKER_KEYS.get(name)) and not os.environ.get(key):
            text = f"{name} may need {key}, which is not set"
            yield "trackers", Finding("warning", text, f"Set it, or log in to {name}")


def _missing_keys(resource: Resource, advice: str) -> Iterator[Finding]:
    """The keys that a resource needs or may need and that are not set."""
    for variable, needed in resource.key_variables.items():
        if os.environ.get(variable):
            continue
        noun = resource.noun[0].upper() + resource.noun[1:]
        verb = "needs" if needed else "may need"
        text = f"{noun} {verb} {variable}, which is not set"
        yield Finding("failed" if needed else "warning", text, advice)
