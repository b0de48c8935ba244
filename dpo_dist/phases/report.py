"""report: the results of the run on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.evaluation.comparison import Pair
from dpo_dist.evaluation.ranking import Game, Ranking, rank
from dpo_dist.evaluation.win_rate import worth
from dpo_dist.reporting.build import build
from dpo_dist.reporting.card import write_cards
from dpo_dist.reporting.tracking import log_report
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import MANIFEST, PhaseDirectory, file_digest, read_records
from dpo_dist.storage.manifest import Counts, PhaseResult
from dpo_dist.storage.records import Verdict
from dpo_dist.system.console import say
from dpo_dist.tracking import start, sync_command


class ReportPhase:
    """Writes the report in the configured formats, and logs it to Weights & Biases
    if the training is."""

    name = "report"
    sections = ("report",)

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The manifests of all other phases."""
        others = [step for step in run.steps if step.phase != self.name]
        folders = {str(step): run.at_round(step.round).require(step.phase) for step in others}
        return {"manifests": {step: file_digest(f / MANIFEST) for step, f in folders.items()}}

    def run(self, run: Run, out: PhaseDirectory) -> PhaseResult:
        rounds = [at_round.directory("evaluate") for at_round in run.rounds()]
        report = build(run, out.path, ranking=ranking_of_rounds(rounds))
        trained = (run.rounds() or [run])[-1]
        if trained.is_complete("train"):
            write_cards(trained.directory("train"), report.figures)
        if tracked := trained.tracked("train"):
            with start(tracked) as logged:
                log_report(logged, report, out.path)
                offline = logged.offline
            if offline:
                command = sync_command(tracked)
                say(f"Weights & Biases: logged offline; to upload it: {command}")
        return PhaseResult(counts=Counts(received=1, kept=1))


def ranking_of_rounds(evaluations: Sequence[Path]) -> Ranking | None:
    """The strengths of base, SFT and every round's policy, from all rounds' verdicts on the same
    held-out prompts. None for a run without rounds; its evaluation has a ranking."""
    games: list[Game] = []
    arms: dict[str, None] = {}
    for number, folder in enumerate(evaluations, start=1):
        path = folder / "verdicts.jsonl"
        verdicts: dict[Pair, list[Verdict]] = {}
        for verdict in read_records(path, Verdict) if path.exists() else ():
            if number == 1 or "dpo" in verdict.between:  # other verdicts are equal in all rounds
                verdicts.setdefault(verdict.between, []).append(verdict)
        for pair, given in verdicts.items():
            a, b = (f"round {number}" if arm == "dpo" else arm for arm in pair)
            arms |= dict.fromkeys((b, a))
            games += [Game(prompt, a, b, value) for prompt, value in worth(given, pair[0]).items()]
    return rank(games, list(arms)) if games else None
