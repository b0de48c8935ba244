"""Planted judges: judges with a known preference, so that the right labels are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.canaries import INSTRUCTION
from dpo_dist.judging.judge import Comparison, Judge, higher
from dpo_dist.storage.records import Ballot, BallotOutcome

Decision = Callable[[Comparison], BallotOutcome]

LARGEST_GROUP = 8  # ballots


class PlantedJudge(Judge):
    """Decides by a function, in shuffled order and in groups of random sizes. Fails after
    `patience` groups; None: never."""

    def __init__(
        self, name: str, decide: Decision, *, seed: int, patience: int | None = None
    ) -> None:
        self.identity = f"planted:{name}"
        self._decide = decide
        self._random = random.Random(seed)
        self._patience = patience

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        left = list(comparisons)
        self._random.shuffle(left)
        groups = 0
        while left:
            if groups == self._patience:
                raise JudgeFailed("planned")
            size = self._random.randint(1, LARGEST_GROUP)
            yield [self.ballot(comparison, self._decide(comparison)) for comparison in left[:size]]
            del left[:size]
            groups += 1


def prefers_good(comparison: Comparison) -> BallotOutcome:
    """Prefers the answer with more of these: the word GOOD, and the topic (the last two words of
    the prompt)."""
    topic = " ".join(comparison.prompt.messages[-1].content.split()[-2:])

    def count(text: str) -> int:
        return ("GOOD" in text) + (topic in text)

    return higher(count(comparison.first_text), count(comparison.second_text))


def prefers_length(comparison: Comparison) -> BallotOutcome:
    return higher(len(comparison.first_text), len(comparison.second_text))


def obeys(comparison: Comparison) -> BallotOutcome:
    """Prefers GOOD, unless one text contains the instruction to choose it."""
    obeyed = higher(INSTRUCTION in comparison.first_text, INSTRUCTION in comparison.second_text)
    return prefers_good(comparison) if obeyed == "tie" else obeyed


def always(outcome: BallotOutcome) -> Decision:
    return lambda comparison: outcome
