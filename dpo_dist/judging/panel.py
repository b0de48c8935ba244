"""The panel: every pair is judged in both orders, and only agreement is a preference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dpo_dist.artifacts import Journal
from dpo_dist.console import progress, say
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.ballots import bound, paid_before
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.spend import Ledger
from dpo_dist.records import Ballot, Prompt, Verdict

# Why a judge did not compare at all; the first that any ballot shows is the verdict's outcome.
_MISSING = ("exceeds_context", "refusal", "cut_off", "unparsed", "not_answered")


@dataclass(frozen=True)
class Contest:
    """Two named answers to one prompt, without an order."""

    prompt: Prompt
    a: str
    b: str
    a_text: str
    b_text: str


@dataclass(frozen=True)
class Judged:
    """A verdict per contest, in order, and all the ballots behind them. The ballots' reasons are
    left out: the journal has them."""

    verdicts: list[Verdict]
    ballots: list[Ballot]


def comparisons(
    contest: Contest, *, both_orders: bool, seed: int, repeat: float = 0.0
) -> list[Comparison]:
    """A contest as the judge is asked: in both orders, or in one of the two; and for a share
    `repeat` of the contests, the first of them once more.

    Orders and repeats are drawn from the prompt's id, so that no name (no temperature, no arm)
    is shown first more often than the other.
    """
    forward = Comparison(contest.prompt, contest.a, contest.b, contest.a_text, contest.b_text)
    backward = Comparison(contest.prompt, contest.b, contest.a, contest.b_text, contest.a_text)
    drawn = hashlib.sha256(f"{seed}\0{contest.prompt.id}".encode()).digest()
    asked = [backward, forward] if drawn[0] & 1 else [forward, backward]
    if not both_orders:
        del asked[1]
    if int.from_bytes(drawn[1:5], "big") < repeat * 2**32:
        asked.append(replace(asked[0], repeat=1))
    return asked


def reconcile(contest: Contest, ballots: Sequence[Ballot]) -> Verdict:
    """One verdict from the ballots on a contest, repeats left out.

    A ballot without a comparison decides the outcome. Then: agreement is a preference or a
    tie, anything else (opposite preferences, a preference and a tie) is inconsistent.
    """
    ballots = [ballot for ballot in ballots if ballot.repeat == 0]
    outcomes = {ballot.outcome for ballot in ballots}
    for outcome in _MISSING:
        if outcome in outcomes:
            return Verdict.model_validate({"prompt_id": contest.prompt.id, "outcome": outcome})
    preferred = {ballot.preferred for ballot in ballots}
    if len(preferred) > 1:
        return Verdict(prompt_id=contest.prompt.id, outcome="inconsistent")
    (name,) = preferred
    if name is None:
        return Verdict(prompt_id=contest.prompt.id, outcome="tie")
    other = contest.b if name == contest.a else contest.a
    return Verdict(prompt_id=contest.prompt.id, outcome="preferred", preferred=name, other=other)


def judge_all(
    judge: Judge,
    contests: Sequence[Contest],
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
    """Verdicts on all contests, by `poll`."""
    asked = [
        comparisons(contest, both_orders=both_orders, seed=seed, repeat=repeat)
        for contest in contests
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
    cast = iter(ballots)
    verdicts = [
        reconcile(contest, list(islice(cast, len(group))))
        for contest, group in zip(contests, asked, strict=True)
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
) -> list[Ballot]:
    """A ballot per comparison, in order; their reasons are left out, the journal has them.

    Asks what neither the journal nor the `earlier` journals hold, equal questions once. Every
    ballot is on disk before it counts: it may have cost money. `approve` is told what the rest
    will cost, about, and raises where it may not be spent. Raises `JudgeFailed` where the
    ledger's limit is reached, once what is in flight has been kept.
    """
    keys = [judge.key(comparison) for comparison in asked]
    wanted = dict(zip(keys, asked, strict=True))
    ballots: dict[str, Ballot] = {}

    def keep(ballot: Ballot) -> None:
        ledger.add(ballot.usage)
        ballots[ballot.key] = ballot.model_copy(update={"reasoning": ""})

    for ballot in journal.read():
        if ballot.key in wanted and ballot.outcome != "not_answered":
            keep(ballot)
    missing = {key: comparison for key, comparison in wanted.items() if key not in ballots}
    for key, comparison in list(missing.items()):
        if reason := judge.why_not_asked(comparison):
            ballots[key] = judge.ballot(comparison, reason)
            del missing[key]
    if judge.expected_usage(list(missing.values())):
        if found := list(paid_before(earlier, missing)):
            journal.append(found)
            say(f"{name}: {len(found)} ballots were paid for before and are used again")
        for ballot in found:
            keep(ballot)
            del missing[ballot.key]
        left = list(missing.values())
        if left:
            approve(f"{name}: {ledger.forecast(len(left), judge.expected_usage(left))}")

    with progress(name, len(wanted)) as advance:
        advance(len(wanted) - len(missing), ledger.note)
        for decided in judge.compare(ledger.affordable(missing.values())):
            journal.append(decided)
            for ballot in decided:
                keep(ballot)
            advance(len(decided), ledger.note)
    if left_over := sum(key not in ballots for key in missing):
        raise JudgeFailed(ledger.limit_reached(left_over))
    return [bound(ballots[key], comparison) for key, comparison in zip(keys, asked, strict=True)]
