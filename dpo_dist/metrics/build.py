"""From the run file's sections to metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dpo_dist.config import (
    DistinctMetric,
    ExactMatchMetric,
    FaithfulQuotesMetric,
    FunctionMetric,
    JsonSchemaMetric,
    LabelMatchMetric,
    LengthMetric,
    MetricConfig,
    RefusalRateMetric,
    RegexMetric,
    RepetitionMetric,
    RougeLMetric,
    StopRateMetric,
)
from dpo_dist.errors import ConfigError
from dpo_dist.metrics import structured, text
from dpo_dist.metrics.function import user_function
from dpo_dist.metrics.metric import Metric


def build_metrics(configs: Sequence[MetricConfig]) -> list[Metric]:
    """The metrics, each under a key of its own. Raises `ConfigError` for one that is there
    twice."""
    metrics = [build_metric(config) for config in configs]
    count = Counter(metric.key for metric in metrics)
    metrics = [
        replace(metric, key=f"{metric.key}:{metric.label}") if count[metric.key] > 1 else metric
        for metric in metrics
    ]
    if repeated := [key for key, n in Counter(m.key for m in metrics).items() if n > 1]:
        raise ConfigError(f"the metric {repeated[0]} is listed twice: give each its own label")
    return metrics


def build_metric(config: MetricConfig) -> Metric:
    """The metric that a section of the run file describes.

    Raises `ConfigError` for a schema file that is missing or no JSON schema, and for a function
    that cannot be imported.
    """
    return replace(_metric(config), better=config.better)


def _metric(config: MetricConfig) -> Metric:
    kind, label = config.type, config.label
    match config:
        case JsonSchemaMetric():
            return Metric(kind, label, structured.json_schema(config.schema_path))
        case LabelMatchMetric():
            return Metric(
                f"{kind}:{config.field}",
                label,
                structured.label_match(config.field),
                reference=config.field,
                labels=structured.labels(config.field, config.order),
            )
        case FaithfulQuotesMetric():
            score = structured.faithful_quotes(config.field)
            return Metric(f"{kind}:{config.field}", label, score)
        case RegexMetric():
            key = f"{kind}:{config.match}:{config.pattern}"
            score = text.regex(config.pattern, config.match)
            return Metric(key, label, score)
        case ExactMatchMetric() | RougeLMetric():
            against = text.exact_match if kind == "exact_match" else text.rouge_l
            key = f"{kind}:{config.field}"
            return Metric(key, label, against(config.field), reference=config.field)
        case LengthMetric():
            unit = config.unit
            return Metric(f"{kind}:{unit}", label, text.length(unit), unit)
        case StopRateMetric():
            return Metric(kind, label, text.stop_rate)
        case DistinctMetric():
            return Metric(f"{kind}:{config.n}", label, text.distinct_n(config.n))
        case RepetitionMetric():
            score = text.repetition(config.n)
            return Metric(f"{kind}:{config.n}", label, score)
        case RefusalRateMetric():
            return Metric(kind, label, text.refusal_rate)
        case FunctionMetric():
            key = f"{kind}:{config.path.name}"
            return Metric(key, label, user_function(config), config.unit)
