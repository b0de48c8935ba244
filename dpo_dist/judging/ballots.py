"""Ballots that were paid for before, by this run or by others: none is paid for twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dpo_dist.artifacts import read_records
from dpo_dist.console import say
from dpo_dist.errors import DataError
from dpo_dist.judging.judge import Comparison
from dpo_dist.records import Ballot


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
                    yield bound(ballot, comparison).model_copy(update={"usage": {}})
        except (DataError, OSError) as error:
            say(f"ballots of {path} are left aside: {error}")


def bound(ballot: Ballot, comparison: Comparison) -> Ballot:
    """The ballot under the names of another comparison that asks the same."""
    names = {
        "prompt_id": comparison.prompt.id,
        "first": comparison.first,
        "second": comparison.second,
    }
    return ballot.model_copy(update=names)
