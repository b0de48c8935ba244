"""report: everything that the run proves, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_dist.config import Config
from dpo_dist.evaluation.comparison import Pair
from dpo_dist.evaluation.ranking import Game, rank
from dpo_dist.evaluation.win_rate import worth
from dpo_dist.reporting.build import build
from dpo_dist.reporting.tracking import log_report
from dpo_dist.runs.directories import check_complete, phase_dir, run_root, steps_of
from dpo_dist.storage.artifacts import PhaseDirectory, file_digest, read_records
from dpo_dist.storage.records import Verdict
from dpo_dist.system.console import say
from dpo_dist.tracking import start, sync_command, tracked_run

SECTIONS = ("report",)


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the manifests of all phases before it."""
    manifests = {}
    for step in steps_of(config):
        if step.phase == "report":
            continue
        manifest = check_complete(config.at_round(step.round), step.phase)
        manifests[str(step)] = file_digest(manifest)
    return {"manifests": manifests}


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Write the report in the formats asked for, and log it where the run is tracked."""
    root, shared = run_root(config), None
    if config.run.point is not None:
        root, shared = phase_dir(config, "evaluate").parent, root
    count = config.rounds.count if config.rounds is not None else 0
    rounds = [phase_dir(config.at_round(n + 1), "evaluate").parent for n in range(count)]
    report = build(
        config, root, out.path, rounds=rounds, ranking=ranking_of_rounds(rounds), shared=shared
    )
    if tracked := tracked_run(config, run_root(config), out.path):
        with start(tracked) as logged:
            log_report(logged, report, out.path)
        if tracked.settings.mode == "offline":
            say(f"Weights & Biases: logged offline; to upload it: {sync_command(tracked)}")
    return {"counts": {"in": 1, "kept": 1, "dropped": {}}}


def ranking_of_rounds(rounds: Sequence[Path]) -> dict[str, Any] | None:
    """The strengths of base, SFT and every round's policy, from all rounds' verdicts on the same
    held-out prompts. None for a run without rounds, whose evaluation has its own."""
    games: list[Game] = []
    arms: dict[str, None] = {}
    for number, folder in enumerate(rounds, start=1):
        path = folder / "evaluate" / "verdicts.jsonl"
        verdicts: dict[Pair, list[Verdict]] = {}
        for verdict in read_records(path, Verdict) if path.exists() else ():
            if number == 1 or "dpo" in verdict.between:  # the others are the same in all rounds
                verdicts.setdefault(verdict.between, []).append(verdict)
        for pair, given in verdicts.items():
            a, b = (f"round {number}" if arm == "dpo" else arm for arm in pair)
            arms |= dict.fromkeys((b, a))
            games += [Game(prompt, a, b, value) for prompt, value in worth(given, pair[0]).items()]
    return asdict(rank(games, list(arms))) if games else None
