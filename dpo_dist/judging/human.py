"""People as judges: a sheet goes out, is filled in, and comes back with their choices."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dpo_dist.config import HumanConfig
from dpo_dist.errors import DataError, JudgeFailed
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.sheet import SheetRow, append_to_sheet, read_sheet, row_key
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Ballot, BallotOutcome
from dpo_dist.system.console import counted

OUTCOMES: dict[str, BallotOutcome] = {"1": "first", "2": "second", "tie": "tie"}


class HumanJudge(Judge):
    """Writes what there is to compare to a sheet, and reads the choices that stand in it.

    What stands in the sheet stays; comparisons that it lacks are appended. `journal` holds the
    ballots that were read before: their rows are in the sheet as well, and a choice that was
    changed since counts as it stands now.
    """

    def __init__(self, config: HumanConfig, journal: Path) -> None:
        self._path = config.sheet
        self._journal = journal
        self.identity = f"human:{config.sheet.stem}"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Yield the answered ones together. Raises `JudgeFailed` where others are left, and
        `DataError` for a sheet that cannot be what went out."""
        asked = {row_key(self.key(comparison)): comparison for comparison in comparisons}
        read = self._read_before()
        if not asked and not read:
            return
        table = read_sheet(self._path)
        for row in table.rows:
            if row.key not in asked and row.key not in read:
                raise DataError(
                    f"{self._path}:{row.line}: the key `{row.key}` does not belong to this phase. "
                    "A sheet belongs to one phase of one run: name another sheet, or move this "
                    "one away."
                )
        answered = [row for row in table.rows if row.choice]
        yield [ballot for row in answered for ballot in self._ballots(row, asked, read)]
        left = asked.keys() - {row.key for row in answered}
        if not left:
            return
        there = {row.key for row in table.rows}
        if missing := {key: asked[key] for key in left if key not in there}:
            append_to_sheet(self._path, table, [(key, missing[key]) for key in spread(missing)])
        raise JudgeFailed(
            f"{counted(len(left), 'comparison')} still to be judged: in {self._path}, fill in the "
            "column `choice` with 1, 2 or tie (which answer is better), save the file as UTF-8 "
            "CSV, and run the same command again. This can be done in several passes: choices "
            "already read are kept."
        )

    def _read_before(self) -> dict[str, Ballot]:
        """The latest ballots of earlier runs, by their row's key."""
        if not self._journal.exists():
            return {}
        ballots = read_records(self._journal, Ballot)
        return {row_key(b.key): b for b in ballots if b.judge == self.identity}

    def _ballots(
        self, row: SheetRow, asked: Mapping[str, Comparison], read: Mapping[str, Ballot]
    ) -> Iterator[Ballot]:
        """The ballot of an answered row, if it is a new one."""
        outcome = OUTCOMES[row.choice]
        if row.key in asked:
            yield self.ballot(asked[row.key], outcome, reasoning=row.comment)
        elif read[row.key].outcome != outcome:
            yield read[row.key].model_copy(update={"outcome": outcome, "reasoning": row.comment})


def spread(comparisons: Mapping[str, Comparison]) -> list[str]:
    """The keys in an order that they draw themselves: all prompts once, then all a second time.

    So the questions on one prompt lie as far apart as can be, and those on the same two answers
    farthest: who has just preferred an answer would prefer it again in the other order, to be
    consistent.
    """
    by_prompt: dict[str, dict[frozenset[str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(comparisons):
        comparison = comparisons[key]
        answers = frozenset((comparison.first, comparison.second))
        by_prompt[comparison.prompt.id][answers].append(key)
    prompts = [_in_turn(list(contests.values())) for contests in by_prompt.values()]
    # those with most questions come first in every round, so that no round begins as one ended
    return _in_turn(sorted(prompts, key=lambda keys: (-len(keys), keys[0])))


def _in_turn(groups: Sequence[Sequence[str]]) -> list[str]:
    """The first of every group, then the second of every group, and so on."""
    rounds = itertools.zip_longest(*groups)
    return [key for one_round in rounds for key in one_round if key is not None]
