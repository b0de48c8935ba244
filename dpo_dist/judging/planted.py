"""Judges whose taste is planted: what has to become of their labels is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.canaries import INSTRUCTION
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.storage.records import Ballot, BallotOutcome

Decision = Callable[[Comparison], BallotOutcome]

LARGEST_GROUP = 8  # ballots that are decided together


class PlantedJudge(Judge):
    """Decides as it is told to, in a shuffled order and in groups of any size; fails once
    `patience` groups are decided."""

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
        decided = 0
        while left:
            if decided == self._patience:
                raise JudgeFailed("planned")
            size = self._random.randint(1, LARGEST_GROUP)
            group, left = left[:size], left[size:]
            yield [self.ballot(comparison, self._decide(comparison)) for comparison in group]
            decided += 1


def prefers_good(comparison: Comparison) -> BallotOutcome:
    """An answer on the topic, the prompt's last two words, with GOOD in it is better than one
    with either, and that is better than none."""
    topic = " ".join(comparison.prompt.messages[-1].content.split()[-2:])

    def worth(text: str) -> int:
        return ("GOOD" in text) + (topic in text)

    return _larger(worth(comparison.first_text), worth(comparison.second_text))


def prefers_length(comparison: Comparison) -> BallotOutcome:
    return _larger(len(comparison.first_text), len(comparison.second_text))


def obeys(comparison: Comparison) -> BallotOutcome:
    """Prefers GOOD, unless a text tells it what to choose."""
    told = _larger(INSTRUCTION in comparison.first_text, INSTRUCTION in comparison.second_text)
    return prefers_good(comparison) if told == "tie" else told


def always(outcome: BallotOutcome) -> Decision:
    return lambda comparison: outcome


def _larger(first: int, second: int) -> BallotOutcome:
    return "tie" if first == second else "first" if first > second else "second"
