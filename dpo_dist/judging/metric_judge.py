"""A judge without a model: the better score on the task's own checks wins."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.metrics import Metric
from dpo_dist.records import Ballot, BallotOutcome, Prompt

GROUP = 500  # ballots that are put on disk together
EQUAL = 1e-9  # scores are means of a few fractions; anything smaller is rounding


class MetricJudge(Judge):
    """Prefers the higher weighted mean of its metrics; equal means are a tie."""

    def __init__(self, metrics: Sequence[Metric], weights: Sequence[float]) -> None:
        self._metrics = list(zip(metrics, weights, strict=True))
        self._total = sum(weights)
        parts = (f"{metric.key}*{weight:g}" for metric, weight in self._metrics)
        self.identity = "metric:" + "+".join(parts)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        waiting = iter(comparisons)
        while group := list(itertools.islice(waiting, GROUP)):
            yield [self._decide(comparison) for comparison in group]

    def key(self, comparison: Comparison) -> str:
        return self._digest(comparison, comparison.prompt.reference)

    def _decide(self, comparison: Comparison) -> Ballot:
        first = self._score(comparison.prompt, comparison.first_text)
        second = self._score(comparison.prompt, comparison.second_text)
        outcome: BallotOutcome = "tie"
        if abs(first - second) > EQUAL:
            outcome = "first" if first > second else "second"
        return self.ballot(comparison, outcome, reasoning=f"{first:.3f} against {second:.3f}")

    def _score(self, prompt: Prompt, text: str) -> float:
        scores = (weight * metric.score(prompt, text) for metric, weight in self._metrics)
        return sum(scores) / self._total
