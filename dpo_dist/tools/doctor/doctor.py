"""The environment, and the usual mistakes in it: each with what to do."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path

from dpo_dist.config import ClaudeConfig, Config, OpenAiConfig, VllmServer
from dpo_dist.data.models import check_model
from dpo_dist.errors import UserError
from dpo_dist.runs.directories import trainings
from dpo_dist.system import keys
from dpo_dist.system.console import counted
from dpo_dist.system.machine import gpus
from dpo_dist.tools.doctor import packages, placement, surroundings
from dpo_dist.tools.doctor.findings import Finding

_MARKS = {"ok": "  ", "warning": "! ", "failed": "X "}


def examine(config: Config | None) -> list[tuple[str, Finding]]:
    """Everything about this machine, and with a run file what that needs of it."""
    found = [*_environment(config)]
    return found if config is None else [*found, *_run_file(config)]


def to_terminal(findings: list[tuple[str, Finding]]) -> str:
    """A line for each; what needs attention is marked, and followed by what to do."""
    width = max(len(name) for name, _ in findings)
    lines = []
    for name, finding in findings:
        lines.append(f"{_MARKS[finding.state]}{name:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  -> {finding.advice}")
    failed = sum(finding.state == "failed" for _, finding in findings)
    warned = sum(finding.state == "warning" for _, finding in findings)
    return "\n".join([*lines, f"{counted(failed, 'error')} (X), {counted(warned, 'warning')} (!)"])


def _environment(config: Config | None) -> Iterator[tuple[str, Finding]]:
    folder = config.run.output_dir if config else Path()
    yield "host", Finding("ok", f"{socket.gethostname()}, {platform.platform()}")
    yield "python", Finding("ok", platform.python_version())
    yield from packages.versions()
    yield from packages.companions()
    yield "torch build", packages.torch_build()
    yield "GPUs", surroundings.devices()
    yield "CUDA_VISIBLE_DEVICES", surroundings.visible_devices()
    yield "DS_ACCELERATOR", surroundings.deepspeed_accelerator()
    yield "memory", surroundings.memory()
    yield "/dev/shm", surroundings.shared_memory()
    yield "disk", surroundings.disk(folder)
    yield "file locks", surroundings.file_locks(folder)
    yield "TMPDIR", surroundings.temporary_folder()
    yield "model cache", surroundings.model_cache()
    yield "open files", surroundings.open_files()
    yield "locked memory", surroundings.locked_memory()
    yield "compiler", surroundings.compiler()
    yield "stale locks", surroundings.extension_locks()
    yield "launcher variables", surroundings.launcher_variables()
    yield "network variables", placement.network_variables()
    yield "SLURM", placement.slurm()
    yield "keys", surroundings.key_variables(config.key_variables if config else keys.USUAL)


def _run_file(config: Config) -> Iterator[tuple[str, Finding]]:
    try:
        check_model(config.model.base)
        yield "model", Finding("ok", config.model.base)
    except UserError as error:
        yield "model", Finding("failed", str(error), "Set model.base")
    for section in trainings(config).values():
        yield "accelerate_config", placement.training(section, gpus())
    yield from _keys(config)
    wandb = config.tracking.wandb
    if wandb is not None and wandb.mode == "online" and not os.environ.get(keys.WANDB):
        advice = "Set it, log in with `wandb login`, or use mode: offline"
        yield "tracking", Finding("warning", "wandb is online, and WANDB_API_KEY not set", advice)


def _keys(config: Config) -> Iterator[tuple[str, Finding]]:
    """The keys that judges and servers of the run want and the environment lacks, each once."""
    missing: dict[tuple[str, str], Finding] = {}
    for judge in config.judges:
        if isinstance(judge, ClaudeConfig) and not os.environ.get(keys.ANTHROPIC):
            missing["judge", keys.ANTHROPIC] = Finding(
                "failed",
                f"Claude judges, and {keys.ANTHROPIC} is not set",
                "Set it where the phases that judge run",
            )
        elif isinstance(judge, OpenAiConfig) and not os.environ.get(judge.api_key_variable):
            missing["judge", judge.base_url] = Finding(
                "warning",
                f"{judge.base_url} judges, and {judge.api_key_variable} is not set",
                "Set it where the phases that judge run, unless that server wants no key",
            )
    for engine in config.engines:
        variable = engine.api_key_variable if isinstance(engine, VllmServer) else None
        if variable is not None and not os.environ.get(variable):
            missing["engine", variable] = Finding(
                "failed", f"servers want a key, and {variable} is not set", "Set it"
            )
    yield from ((name, finding) for (name, _), finding in missing.items())
