"""Asking a judge, as the phases that have something to ask do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dpo_dist.artifacts import PhaseDirectory
from dpo_dist.config import Config
from dpo_dist.console import confirm, say
from dpo_dist.judging.judge import BALLOTS, Judge
from dpo_dist.judging.panel import Contest, Judged, judge_all
from dpo_dist.judging.spend import Ledger
from dpo_dist.records import Ballot


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

    What costs money is said and confirmed before. Ballots that other runs beside this one have
    paid for are used again.
    """
    journals = config.run.output_dir.glob(f"*/*/{BALLOTS}")
    with out.journal(BALLOTS, Ballot) as journal:
        return judge_all(
            judge,
            contests,
            journal,
            ledger=ledger,
            both_orders=both_orders,
            seed=config.run.seed,
            repeat=repeat,
            earlier=[path for path in sorted(journals) if path != journal.path],
            approve=approve,
            name=name,
        )
