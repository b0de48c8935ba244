"""The panel: every pair is judged in both orders, and only agreement is a preference."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_dist.artifacts import Journal
from dpo_dist.console import Advance, say
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.spend import Ledger
from dpo_dist.records import Ballot, Prompt, Verdict

# Why a judge did not compare at all; the first that any ballot shows is the verdict's outcome.
_MISSING = ("refusal", "cut_off", "unparsed")


@dataclass(frozen=True)
class Contest:
    """Two named answers to one prompt, without an order."""

    prompt: Prompt
    a: str
    b: str
    a_text: str
    b_text: str


def comparisons(contest: Contest, *, both_orders: bool, seed: int) -> list[Comparison]:
    """A contest as the judge is asked: a first and b first, or one of the two.

    A single order is drawn from the prompt's id, so that no name (no temperature, no arm) is
    shown first more often than the other.
    """
    forward = Comparison(contest.prompt, contest.a, contest.b, contest.a_text, contest.b_text)
    backward = Comparison(contest.prompt, contest.b, contest.a, contest.b_text, contest.a_text)
    if both_orders:
        return [forward, backward]
    coin = hashlib.sha256(f"{seed}\0{contest.prompt.id}".encode()).digest()[0] & 1
    return [backward if coin else forward]


def reconcile(contest: Contest, ballots: Sequence[Ballot]) -> Verdict:
    """One verdict from the ballots on a contest.

    A ballot without a comparison decides the outcome. Then: agreement is a preference or a
    tie, anything else (opposite preferences, a preference and a tie) is inconsistent.
    """
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
    on_done: Advance,
) -> list[Verdict]:
    """Ask what the journal lacks, and return the verdicts in the contests' order.

    Every ballot is on disk before it counts: a ballot may have cost money. `on_done(n, note)` is
    told how many ballots have come in, the journal's own included, and what they cost. Raises
    `JudgeFailed` where the ledger's limit is reached, once what is in flight has been kept.
    """
    asked = [comparisons(contest, both_orders=both_orders, seed=seed) for contest in contests]
    ballots = {_key(ballot): ballot for ballot in journal.read() if ballot.judge == judge.identity}
    for ballot in ballots.values():
        ledger.add(ballot.usage)
    missing = [c for group in asked for c in group if _comparison_key(c) not in ballots]
    if expected := judge.expected_usage(missing):
        say(f"judge: {ledger.forecast(len(missing), expected)}")
    on_done(sum(len(group) for group in asked) - len(missing), ledger.note)
    for ballot in judge.compare(ledger.affordable(missing)):
        journal.append([ballot])
        ledger.add(ballot.usage)
        ballots[_key(ballot)] = ballot
        on_done(1, ledger.note)
    if left := sum(_comparison_key(comparison) not in ballots for comparison in missing):
        raise JudgeFailed(ledger.limit_reached(left))
    return [
        reconcile(contest, [ballots[_comparison_key(comparison)] for comparison in group])
        for contest, group in zip(contests, asked, strict=True)
    ]


def _key(ballot: Ballot) -> tuple[str, str, str]:
    return ballot.prompt_id, ballot.first, ballot.second


def _comparison_key(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.prompt.id, comparison.first, comparison.second
