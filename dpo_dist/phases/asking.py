"""How a phase asks its judge: cost approval, ballots of other runs, canaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import Canaries, JudgeConfig, ScorerConfig
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.build import build_judge, build_scorer
from dpo_dist.judging.canaries import DRAWN, Canary, CanaryRow, canary_results
from dpo_dist.judging.judge import BALLOTS, Comparison, Judge
from dpo_dist.judging.panel import BallotSummary, Judged, judge_all, poll
from dpo_dist.judging.spend import Ledger, open_ledger
from dpo_dist.runs.run import SWEEP, Run
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import confirm, say

SHOWN = 3  # failed canaries that are named in a line
Approve = Callable[[str], None]


class ApproveOnce:
    """Asks for cost approval once per phase; later estimates are only printed."""

    def __init__(self) -> None:
        self._given = False

    def __call__(self, estimate: str) -> None:
        if self._given:
            say(estimate)
        else:
            confirm(estimate)
            self._given = True


@dataclass(frozen=True)
class JudgeSession:
    """A judge in use by a phase, and its ledger. The judge is checked first. Ballots are kept in
    the phase's directory `out`; ballots that other runs, rounds or points of a sweep paid for are
    reused."""

    judge: Judge
    ledger: Ledger
    out: PhaseDirectory
    run: Run

    def __post_init__(self) -> None:
        self.judge.check()

    @classmethod
    def to_compare(cls, config: JudgeConfig, out: PhaseDirectory, run: Run) -> JudgeSession:
        """A session with a judge that compares."""
        return cls(build_judge(config, out.path), open_ledger(config), out, run)

    @classmethod
    def to_score(
        cls, config: ScorerConfig, folder: Path, out: PhaseDirectory, run: Run
    ) -> JudgeSession:
        """A session with a judge that scores single answers and keeps its own files in `folder`."""
        return cls(build_scorer(config, folder), open_ledger(config), out, run)

    def compare(
        self,
        comparisons: Sequence[Comparison],
        *,
        both_orders: bool = True,
        repeat: float = 0.0,
        approve: Approve = confirm,
        name: str,
    ) -> Judged:
        """The panel's verdicts; see `judge_all`."""
        with self.out.journal(BALLOTS, Ballot) as journal:
            return judge_all(
                self.judge,
                comparisons,
                journal,
                ledger=self.ledger,
                both_orders=both_orders,
                seed=self.run.config.run.seed,
                repeat=repeat,
                earlier=self._other_journals(journal.path),
                approve=approve,
                name=name,
            )

    def score(self, answers: Sequence[Comparison], *, name: str) -> list[BallotSummary]:
        """The ballots with the scores of single answers; see `poll`."""
        with self.out.journal(BALLOTS, Ballot) as journal:
            return poll(
                self.judge,
                answers,
                journal,
                ledger=self.ledger,
                earlier=self._other_journals(journal.path),
                approve=confirm,
                name=name,
            )

    def _other_journals(self, own: Path) -> list[Path]:
        runs = self.run.config.run.output_dir
        phases = ("*", "round-*/*", f"{SWEEP}/*/*")  # of a run, a round, a point of a sweep
        journals = [path for phase in phases for path in runs.glob(f"*/{phase}/{BALLOTS}")]
        return [path for path in sorted(journals) if path != own]


def most_canary_requests(settings: Canaries, own: Sequence[Canary]) -> int:
    """The largest number of requests that the canaries take, in both orders."""
    return 2 * (settings.per_kind * len(DRAWN) + len(own))


def examine(
    session: JudgeSession, canaries: Sequence[Canary], settings: Canaries, *, approve: Approve
) -> list[CanaryRow]:
    """Ask the judge about the canaries in both orders; returns a row per kind. Raises `JudgeFailed`
    if too few canaries passed in total, or if the whole interval of one kind lies below the
    required rate. Kinds that the run file accepts do not count."""
    if not canaries:
        return []
    comparisons = [canary.comparison for canary in canaries]
    judged = session.compare(comparisons, approve=approve, name="canaries")
    rows = []
    for result in canary_results(canaries, judged.ballots):
        row = result.row(settings)
        rows.append(row)
        names = [*result.failed[:SHOWN], "..."] if len(result.failed) > SHOWN else result.failed
        failed = f" ({', '.join(names)})" if names else ""
        say(f"canaries, {_counted(row)}: {row.status}{failed}")
    _check([row for row in rows if row.kind not in settings.accept], settings)
    return rows


def _check(rows: Sequence[CanaryRow], settings: Canaries) -> None:
    n, passed = sum(row.n for row in rows), sum(row.passed for row in rows)
    # In the total alone, a kind with many canaries could hide another kind that fails.
    below = [row for row in rows if row.high is not None and row.high < settings.pass_rate]
    if (n == 0 or passed / n >= settings.pass_rate) and not below:
        return
    failing = [row for row in rows if row.status == "failed"]
    kinds = ",".join([*settings.accept, *(row.kind for row in failing)])
    raise JudgeFailed(
        f"the judge passed {passed} of {n} canaries ({100 * settings.pass_rate:g} % required, and "
        f"no kind far below that); failed: {'; '.join(map(_counted, failing))}. No pairs were "
        "written. The ballots and the judge's reasoning are kept and not paid for again. Use a "
        "stronger judge or a better rubric (and pass --force), or accept the failing kinds by "
        f"running the same command again with --set 'judge.canaries.accept=[{kinds}]'"
    )


def _counted(row: CanaryRow) -> str:
    missing = f" ({row.not_compared} without a comparison)" if row.not_compared else ""
    return f"{row.kind} {row.passed} of {row.n}{missing}"
