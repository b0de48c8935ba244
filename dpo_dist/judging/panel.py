"""The panel: every pair is judged in both orders, and only agreement is a preference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.ballots import Vote, paid_before, vote
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.spend import Ledger
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Ballot, ContestId, Prompt, Verdict, VerdictOutcome
from dpo_dist.system.console import counted, progress, say

# Why a judge did not compare at all; the first that any ballot shows is the verdict's outcome.
_MISSING: tuple[VerdictOutcome, ...] = (
    "exceeds_context",
    "refusal",
    "cut_off",
    "unparsed",
    "not_answered",
)


@dataclass(frozen=True, slots=True)
class Contest:
    """Two named answers to one prompt, without an order.

    `number` tells the contests of one prompt apart where something is drawn.
    """

    prompt: Prompt
    a: str
    b: str
    a_text: str
    b_text: str
    number: int = 0

    @property
    def id(self) -> ContestId:
        return ContestId(self.prompt.id, frozenset((self.a, self.b)))

    def drawn(self, seed: int, *what: str) -> bytes:
        """32 random bytes that follow from the seed, what is drawn, the prompt's id and the
        contest's number: whatever the order of the contests, and whichever others there are."""
        parts = [str(seed), *what, self.prompt.id, str(self.number)]
        return hashlib.sha256("\0".join(parts).encode()).digest()


@dataclass(frozen=True)
class Judged:
    """A verdict per contest, in order, and all the votes behind them."""

    verdicts: list[Verdict]
    votes: list[Vote]


def comparisons(
    contest: Contest, *, both_orders: bool, seed: int, repeat: float = 0.0
) -> list[Comparison]:
    """A contest as the judge is asked: in both orders, or in one of the two; and for a share
    `repeat` of the contests, the first of them once more.

    Orders and repeats are drawn for each contest, so that no name (no temperature, no arm) is
    shown first more often than another.
    """
    forward = Comparison(contest.prompt, contest.a, contest.b, contest.a_text, contest.b_text)
    backward = Comparison(contest.prompt, contest.b, contest.a, contest.b_text, contest.a_text)
    drawn = contest.drawn(seed)
    asked = [backward, forward] if drawn[0] & 1 else [forward, backward]
    if not both_orders:
        del asked[1]
    if int.from_bytes(drawn[1:5], "big") < repeat * 2**32:
        asked.append(replace(asked[0], repeat=1))
    return asked


def reconcile(contest: Contest, votes: Sequence[Vote]) -> Verdict:
    """One verdict from the votes on a contest, repeats left out.

    A vote without a comparison decides the outcome. Then: agreement is a preference or a
    tie, anything else (opposite preferences, a preference and a tie) is inconsistent.
    """
    votes = [vote for vote in votes if vote.repeat == 0]
    outcomes = {vote.outcome for vote in votes}
    verdict = partial(Verdict, prompt_id=contest.prompt.id, between=(contest.a, contest.b))
    for outcome in _MISSING:
        if outcome in outcomes:
            return verdict(outcome=outcome)
    preferred = {vote.preferred for vote in votes}
    if len(preferred) > 1:
        return verdict(outcome="inconsistent")
    (name,) = preferred
    if name is None:
        return verdict(outcome="tie")
    other = contest.b if name == contest.a else contest.a
    return verdict(outcome="preferred", preferred=name, other=other)


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
    votes = poll(
        judge,
        [comparison for group in asked for comparison in group],
        journal,
        ledger=ledger,
        earlier=earlier,
        approve=approve,
        name=name,
    )
    cast = iter(votes)
    verdicts = [
        reconcile(contest, list(islice(cast, len(group))))
        for contest, group in zip(contests, asked, strict=True)
    ]
    return Judged(verdicts, votes)


def poll(
    judge: Judge,
    asked: Sequence[Comparison],
    journal: Journal[Ballot],
    *,
    ledger: Ledger,
    earlier: Iterable[Path] = (),
    approve: Callable[[str], None] = say,
    name: str = "judge",
) -> list[Vote]:
    """A vote per comparison, in order. The journal has the whole ballots.

    Asks what neither the journal nor the `earlier` journals hold, equal questions once. Every
    ballot is on disk before it counts: it may have cost money. `approve` is told what the rest
    will cost, about, and raises where it may not be spent. Raises `JudgeFailed` where the
    ledger's limit is reached, once what is in flight has been kept.
    """
    keys = [judge.key(comparison) for comparison in asked]
    wanted = dict(zip(keys, asked, strict=True))
    votes: dict[str, Vote] = {}

    def keep(ballot: Ballot) -> None:
        ledger.add(ballot.usage)
        votes[ballot.key] = vote(ballot, wanted[ballot.key])

    for ballot in journal.read():
        if ballot.key in wanted and ballot.outcome != "not_answered":
            keep(ballot)
    missing = {key: comparison for key, comparison in wanted.items() if key not in votes}
    for key, comparison in list(missing.items()):
        if reason := judge.why_not_asked(comparison):
            votes[key] = vote(judge.ballot(comparison, reason), comparison)
            del missing[key]
    if expected := judge.expected_usage(list(missing.values())):
        if found := list(paid_before(earlier, missing)):
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
    if left_over := sum(key not in votes for key in missing):
        raise JudgeFailed(ledger.limit_reached(left_over))
    return [vote(votes[key], comparison) for key, comparison in zip(keys, asked, strict=True)]
