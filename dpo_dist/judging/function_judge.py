"""The user's own judge: a function that returns which of two answers is better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from dpo_dist.config import FunctionJudgeConfig
from dpo_dist.judging.judge import Comparison, Judge, Preference, rules_digest
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.storage.records import Ballot, BallotOutcome
from dpo_dist.system.console import warn
from dpo_dist.system.functions import LONGEST_MESSAGE, load_function, shown_error


class FunctionJudge(Judge):
    """Calls the function for one comparison after another and yields each ballot at once. A call
    that fails or returns anything but "first", "second" or "tie" gives no verdict; only the first
    such call prints a warning."""

    uses_reference = True

    def __init__(self, config: FunctionJudgeConfig) -> None:
        self._function = load_function(config.path)
        self._calls = {"attempts": 1} if config.paid else {}
        self._warned = False
        (file,) = config.files.values()
        self.identity = f"{config.name}:{rules_digest([file_digest(file)])}"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        for comparison in comparisons:
            yield [self._decide(comparison)]

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {kind: count * len(comparisons) for kind, count in self._calls.items()}

    def _decide(self, comparison: Comparison) -> Ballot:
        outcome: BallotOutcome
        try:
            returned = self._function(
                comparison.prompt, comparison.first_text, comparison.second_text
            )
        except Exception as error:  # of the user's code
            outcome, problem = "not_answered", shown_error(error)
        else:
            outcome, problem = "unparsed", f"it returned {returned!r}"[:LONGEST_MESSAGE]
            for known in get_args(Preference):
                if isinstance(returned, str) and returned == known:
                    outcome, problem = known, ""
        if problem and not self._warned:
            warn(f"no verdict on {comparison.prompt.id!r}: {problem}; others may follow")
            self._warned = True
        return self.ballot(comparison, outcome, reasoning=problem, usage=dict(self._calls))
