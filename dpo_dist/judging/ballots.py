"""Ballots that were paid for before, by this run or by others: none is paid for twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.errors import DataError
from dpo_dist.judging.judge import Comparison
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Ballot, BallotOutcome, Choice
from dpo_dist.system.console import say


def paid_before(journals: Iterable[Path], wanted: Mapping[str, Comparison]) -> Iterator[Ballot]:
    """The journals' ballots with a wanted key, as answers to these comparisons.

    Only answers that compare are taken: what was refused or cut off may come out better now.
    Another process may be writing a journal; what can be read of it is used.
    """
    left = dict(wanted)
    for path in journals:
        if not left:
            return
        try:
            for ballot in read_records(path, Ballot):
                if ballot.compares and (comparison := left.pop(ballot.key, None)):
                    names = {
                        "prompt_id": comparison.prompt.id,
                        "first": comparison.first,
                        "second": comparison.second,
                    }
                    yield ballot.model_copy(update=names | {"usage": {}})
        except (DataError, OSError) as error:
            say(f"ignoring the ballots in {path}: {error}")


@dataclass(frozen=True, slots=True)
class Vote(Choice):
    """What is kept in memory of a ballot, under the names of a comparison that asks the same."""

    prompt_id: str
    first: str
    second: str
    repeat: int
    outcome: BallotOutcome
    category: str


def vote(ballot: Ballot | Vote, comparison: Comparison) -> Vote:
    """The ballot's vote on the comparison, which asks the same."""
    return Vote(
        comparison.prompt.id,
        comparison.first,
        comparison.second,
        comparison.repeat,
        ballot.outcome,
        ballot.category,
    )
