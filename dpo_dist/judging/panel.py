"""The panel: every comparison is judged in both orders, and only agreement is a preference.

Ballots that this run or another one paid for are read from the journals and not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from dpo_dist.errors import DataError, JudgeFailed
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.spend import Ledger
from dpo_dist.storage.artifacts import Journal, read_records
from dpo_dist.storage.records import Ballot, BallotFields, BallotOutcome, Verdict, VerdictOutcome
from dpo_dist.system.console import counted, progress, say

# Outcomes without a comparison; the first that any ballot has becomes the verdict's outcome.
_MISSING: tuple[VerdictOutcome, ...] = (
    "exceeds_context",
    "refusal",
    "cut_off",
    "unparsed",
    "not_answered",
)


@dataclass(frozen=True, slots=True)
class BallotSummary(BallotFields):
    """The part of a ballot that stays in memory."""

    prompt_id: str
    first: str
    second: str
    repeat: int
    outcome: BallotOutcome
    category: str

    @classmethod
    def of(cls, ballot: Ballot | BallotSummary, comparison: Comparison) -> BallotSummary:
        """The ballot under the names of a comparison that has the same key."""
        return cls(
            comparison.prompt.id,
            comparison.first,
            comparison.second,
            comparison.repeat,
            ballot.outcome,
            ballot.category,
        )


@dataclass(frozen=True)
class Judged:
    """A verdict for each comparison, in order, and all ballots."""

    verdicts: list[Verdict]
    ballots: list[BallotSummary]


def orders(
    comparison: Comparison, *, both_orders: bool, seed: int, repeat: float = 0.0
) -> list[Comparison]:
    """The questions about a comparison: both orders, or one of them; for a share `repeat` of the
    comparisons, the first question once more.

    Orders and repeats are drawn for each comparison, so that no slot and no arm is shown first more
    often than another.
    """
    drawn = comparison.drawn(seed)
    asked = [comparison, comparison.swap()]
    if drawn[0] & 1:
        asked.reverse()
    if not both_orders:
        del asked[1]
    if int.from_bytes(drawn[1:5], "big") < repeat * 2**32:
        asked.append(replace(asked[0], repeat=1))
    return asked


def reconcile(comparison: Comparison, ballots: Sequence[BallotSummary]) -> Verdict:
    """The verdict that follows from the ballots on a comparison, without repeats. A ballot without
    a comparison decides the outcome. Otherwise equal ballots give a preference or a tie, and all
    others (opposite preferences, or a preference and a tie) are inconsistent."""
    ballots = [ballot for ballot in ballots if ballot.repeat == 0]
    outcomes = {ballot.outcome for ballot in ballots}
    between = (comparison.first, comparison.second)
    verdict = partial(Verdict, prompt_id=comparison.prompt.id, between=between)
    for outcome in _MISSING:
        if outcome in outcomes:
            return verdict(outcome=outcome)
    preferred = {ballot.preferred for ballot in ballots}
    if len(preferred) > 1:
        return verdict(outcome="inconsistent")
    (name,) = preferred
    if name is None:
        return verdict(outcome="tie")
    other = comparison.second if name == comparison.first else comparison.first
    return verdict(outcome="preferred", preferred=name, other=other)


def judge_all(
    judge: Judge,
    comparisons: Sequence[Comparison],
    journal: Journal[Ballot],
    *,
    ledger: Ledger,
    both_orders: bool,
    seed: int,
    repeat: float = 0.0,
    earlier: Iterable[Path] = (),
    approve: Callable[[str], None] = say,
    name: str = "judge",
) -> Judged:
    """Verdicts on all comparisons; see `poll`."""
    asked = [
        orders(comparison, both_orders=both_orders, seed=seed, repeat=repeat)
        for comparison in comparisons
    ]
    ballots = poll(
        judge,
        [comparison for group in asked for comparison in group],
        journal,
        ledger=ledger,
        earlier=earlier,
        approve=approve,
        name=name,
    )
    remaining = iter(ballots)
    verdicts = [
        reconcile(comparison, list(islice(remaining, len(group))))
        for comparison, group in zip(comparisons, asked, strict=True)
    ]
    return Judged(verdicts, ballots)


def poll(
    judge: Judge,
    asked: Sequence[Comparison],
    journal: Journal[Ballot],
    *,
    ledger: Ledger,
    earlier: Iterable[Path] = (),
    approve: Callable[[str], None] = say,
    name: str = "judge",
) -> list[BallotSummary]:
    """A ballot for each comparison, in order; the complete ballots are in the journal.

    Asks only questions that are neither in the journal nor in the `earlier` journals, and equal
    questions once. Every ballot is written to disk before it counts, because it may have cost
    money. `approve` gets the cost estimate and raises if it is not approved. Raises `JudgeFailed`
    if the ledger's limit is reached, after the requests in flight are saved.
    """
    keys = [judge.key(comparison) for comparison in asked]
    wanted = dict(zip(keys, asked, strict=True))
    ballots: dict[str, BallotSummary] = {}

    def keep(ballot: Ballot) -> None:
        ledger.add(ballot.usage)
        ballots[ballot.key] = BallotSummary.of(ballot, wanted[ballot.key])

    for ballot in journal.read():
        if ballot.key in wanted and ballot.outcome == "not_answered":
            ledger.add(ballot.usage)  # asked again, but the attempts may have cost money
        elif ballot.key in wanted:
            keep(ballot)
    missing = {key: comparison for key, comparison in wanted.items() if key not in ballots}
    for key, comparison in list(missing.items()):
        if reason := judge.why_not_asked(comparison):
            ballots[key] = BallotSummary.of(judge.ballot(comparison, reason), comparison)
            del missing[key]
    if expected := judge.expected_usage(list(missing.values())):
        if found := list(_paid_before(earlier, missing)):
            journal.append(found)
            say(f"{name}: {counted(len(found), 'ballot')} reused, paid for earlier")
            for ballot in found:
                keep(ballot)
                del missing[ballot.key]
            expected = judge.expected_usage(list(missing.values()))
        if missing:
            approve(f"{name}: {ledger.forecast(len(missing), expected)}")

    with progress(name, len(wanted)) as advance:
        advance(len(wanted) - len(missing), ledger.note)
        for decided in judge.compare(ledger.affordable(missing.values())):
            journal.append(decided)
            for ballot in decided:
                keep(ballot)
            advance(len(decided), ledger.note)
    if left_over := sum(key not in ballots for key in missing):
        raise JudgeFailed(ledger.limit_reached(left_over))
    return [
        BallotSummary.of(ballots[key], comparison)
        for key, comparison in zip(keys, asked, strict=True)
    ]


def _paid_before(journals: Iterable[Path], wanted: Mapping[str, Comparison]) -> Iterator[Ballot]:
    """The journals' ballots with a wanted key, under the names of the wanted comparisons. Ballots
    without a comparison are left out: a refused or cut-off question may succeed now. Another
    process may be writing a journal; its readable part is used."""
    left = dict(wanted)
    for path in journals:
        if not left:
            return
        try:
            for ballot in read_records(path, Ballot):
                if ballot.compares and (comparison := left.pop(ballot.key, None)):
                    update = {"first": comparison.first, "second": comparison.second, "usage": {}}
                    yield ballot.model_copy(update={"prompt_id": comparison.prompt.id, **update})
        except (DataError, OSError) as error:
            say(f"ignoring the ballots in {path}: {error}")
