"""Builds metrics from the run file's sections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from dpo_dist.config.metrics import (
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
from dpo_dist.metrics.metric import Answer, Metric, NotScored
from dpo_dist.storage.records import Prompt
from dpo_dist.system.functions import load_function


def build_metrics(configs: Sequence[MetricConfig]) -> list[Metric]:
    """The metrics, with distinct keys. Raises `ConfigError` for a metric that is listed twice."""
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
    """The metric of a section. Raises `ConfigError` for a missing or invalid JSON schema file, and
    for a function that cannot be imported."""
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
            quotes = structured.faithful_quotes(config.field)
            return Metric(f"{kind}:{config.field}", label, quotes)
        case RegexMetric():
            key = f"{kind}:{config.match}:{config.pattern}"
            return Metric(key, label, text.regex(config.pattern, config.match))
        case ExactMatchMetric() | RougeLMetric():
            match = text.exact_match if kind == "exact_match" else text.rouge_l
            key = f"{kind}:{config.field}"
            return Metric(key, label, match(config.field), reference=config.field)
        case LengthMetric():
            return Metric(f"{kind}:{config.unit}", label, text.length(config.unit), config.unit)
        case StopRateMetric():
            return Metric(kind, label, text.stop_rate)
        case DistinctMetric():
            return Metric(f"{kind}:{config.n}", label, text.distinct_n(config.n))
        case RepetitionMetric():
            return Metric(f"{kind}:{config.n}", label, text.repetition(config.n))
        case RefusalRateMetric():
            return Metric(kind, label, text.refusal_rate)
        case FunctionMetric():
            return Metric(f"{kind}:{config.path.name}", label, _function(config), config.unit)


def _function(config: FunctionMetric) -> Callable[[Prompt, Answer], float]:
    """The user's function as a metric. Raises `ConfigError` if it cannot be imported."""
    function = load_function(config.path)

    def score(prompt: Prompt, answer: Answer) -> float:
        value = function(prompt, answer.text)
        if value is None:
            raise NotScored("no_value", f"{config.path.name} returned None")
        return float(value)  # type: ignore[arg-type]  # raises if it is not a number

    return score
