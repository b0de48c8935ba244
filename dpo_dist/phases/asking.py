"""Asking a judge, as the phases that have something to ask do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dpo_dist.config import Config
from dpo_dist.judging.ballots import Vote
from dpo_dist.judging.judge import BALLOTS, Comparison, Judge
from dpo_dist.judging.panel import Contest, Judged, judge_all, poll
from dpo_dist.judging.spend import Ledger
from dpo_dist.runs.directories import SWEEP
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import confirm, say


class Agreement:
    """To what a phase costs: its first forecast is confirmed, those that follow are said."""

    def __init__(self) -> None:
        self._given = False

    def __call__(self, forecast: str) -> None:
        if self._given:
            say(forecast)
            return
        confirm(forecast)
        self._given = True


def ask(
    judge: Judge,
    ledger: Ledger,
    contests: Sequence[Contest],
    out: PhaseDirectory,
    config: Config,
    *,
    both_orders: bool = True,
    repeat: float = 0.0,
    approve: Callable[[str], None] = confirm,
    name: str,
) -> Judged:
    """The panel's verdicts on the contests; the ballots are kept in the phase's directory.

    What costs money is said and confirmed before. Ballots that other runs beside this one, or
    other rounds and points of a sweep, have paid for are used again.
    """
    with out.journal(BALLOTS, Ballot) as journal:
        return judge_all(
            judge,
            contests,
            journal,
            ledger=ledger,
            both_orders=both_orders,
            seed=config.run.seed,
            repeat=repeat,
            earlier=_other_journals(config, journal.path),
            approve=approve,
            name=name,
        )


def ask_for_scores(
    judge: Judge,
    ledger: Ledger,
    answers: Sequence[Comparison],
    out: PhaseDirectory,
    config: Config,
    *,
    name: str,
) -> list[Vote]:
    """The scores of single answers, kept and confirmed like verdicts."""
    with out.journal(BALLOTS, Ballot) as journal:
        return poll(
            judge,
            answers,
            journal,
            ledger=ledger,
            earlier=_other_journals(config, journal.path),
            approve=confirm,
            name=name,
        )


def _other_journals(config: Config, own: Path) -> list[Path]:
    runs = config.run.output_dir
    inner = ("*", "round-*/*", f"{SWEEP}/*/*")  # phases of a run, a round, a point of a sweep
    journals = [path for folder in inner for path in runs.glob(f"*/{folder}/{BALLOTS}")]
    return [path for path in sorted(journals) if path != own]
