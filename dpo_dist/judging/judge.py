"""What a judge is asked and what it answers, and the choice of the judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpo_dist.config import ClaudeJudge as ClaudeConfig
from dpo_dist.config import JudgeKind
from dpo_dist.config import MetricJudge as MetricConfig
from dpo_dist.metrics import build_metric
from dpo_dist.records import Ballot, Prompt


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, in the order in which the judge sees them.

    `first` and `second` are names that the judge never sees.
    """

    prompt: Prompt
    first: str
    second: str
    first_text: str
    second_text: str


class Judge(Protocol):
    """Compares answers; `identity` names what has to be the same for a ballot to be reused."""

    identity: str

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """The tokens that asking will take, about; empty when it costs nothing."""
        ...

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Ballot]:
        """Yield one ballot per comparison, in the order in which they are decided.

        A comparison is taken from the iterable when it is about to be asked.
        Raises `JudgeFailed` when it cannot go on; ballots yielded before stay valid.
        """
        ...


def build_judge(config: JudgeKind) -> Judge:
    """The judge that the run file names. Raises `ConfigError` for what it lacks."""
    match config:
        case MetricConfig():
            from dpo_dist.judging.metric_judge import MetricJudge

            metrics = [build_metric(metric) for metric in config.metrics]
            return MetricJudge(metrics, config.weights or (1.0,) * len(metrics))
        case ClaudeConfig():
            from dpo_dist.judging.claude import ClaudeJudge

            return ClaudeJudge(config)
