"""A judge without a model, which compares the answers' metrics."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from dpo_dist.judging.judge import GROUP, Comparison, Judge, higher
from dpo_dist.metrics import Answer, Metric, NotScored, attempt
from dpo_dist.storage.records import Ballot, Prompt
from dpo_dist.system.console import warn

EQUAL = 1e-9  # a smaller difference between two scores is rounding


class MetricJudge(Judge):
    """Prefers the answer with the higher weighted mean of the metrics; metrics for which lower is
    better count negative. Equal means are a tie. An answer that a metric cannot score is not
    judged."""

    uses_reference = True

    def __init__(self, metrics: Sequence[Metric], weights: Sequence[float]) -> None:
        self._metrics = [
            (metric, -weight if metric.better == "lower" else weight)
            for metric, weight in zip(metrics, weights, strict=True)
        ]
        self._total = sum(weights)
        self._warned = False
        parts = (f"{metric.key}*{weight:g}" for metric, weight in self._metrics)
        self.identity = "metric:" + "+".join(parts)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        remaining = iter(comparisons)
        while group := list(itertools.islice(remaining, GROUP)):
            yield [self._decide(comparison) for comparison in group]

    def _decide(self, comparison: Comparison) -> Ballot:
        try:
            first = self._score(comparison.prompt, comparison.first_text)
            second = self._score(comparison.prompt, comparison.second_text)
        except NotScored as error:
            if not self._warned:
                warn(f"not judged: {comparison.prompt.id!r}: {error}; others may follow")
                self._warned = True
            return self.ballot(comparison, "not_answered", reasoning=f"{error.reason}: {error}")
        outcome = higher(first, second, EQUAL)
        return self.ballot(comparison, outcome, reasoning=f"{first:.3f} against {second:.3f}")

    def _score(self, prompt: Prompt, text: str) -> float:
        scores = (
            weight * attempt(metric, prompt, Answer(text)) for metric, weight in self._metrics
        )
        return sum(scores) / self._total
