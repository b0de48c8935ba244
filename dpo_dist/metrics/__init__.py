"""Metrics score an answer without a judge. The evaluation and the metric judge use them."""

from dpo_dist.metrics.build import build_metric, build_metrics
from dpo_dist.metrics.metric import (
    Answer,
    Labels,
    Metric,
    NotScored,
    Reason,
    attempt,
    check_references,
)

__all__ = [
    "Answer",
    "Labels",
    "Metric",
    "NotScored",
    "Reason",
    "attempt",
    "build_metric",
    "build_metrics",
    "check_references",
]
