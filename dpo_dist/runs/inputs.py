"""Digests of the files that judges and metrics are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dpo_dist.config import (
    ClaudeConfig,
    FunctionMetric,
    HumanConfig,
    JsonSchemaMetric,
    JudgeConfig,
    MetricConfig,
    MetricJudgeConfig,
    OpenAiConfig,
    RewardModelConfig,
)
from dpo_dist.data.models import check_model, model_identity
from dpo_dist.errors import DataError
from dpo_dist.metrics.function import source_file
from dpo_dist.storage.artifacts import file_digest


def judge_files(judge: JudgeConfig) -> dict[str, str]:
    """Digests of what a judge's section names: a rubric, its metrics' files, or a model. A
    sheet is none: it is filled in while the phase waits."""
    match judge:
        case ClaudeConfig() | OpenAiConfig():
            return _digests([judge.rubric])
        case MetricJudgeConfig():
            return metric_files(judge.metrics)
        case RewardModelConfig():
            check_model(judge.model)
            return {"model": model_identity(judge.model)}
        case HumanConfig():
            return {}


def metric_files(metrics: Iterable[MetricConfig]) -> dict[str, str]:
    """Digests of the schemas and of the modules that metrics name, by what they are named by."""
    named = list(metrics)
    functions = [metric for metric in named if isinstance(metric, FunctionMetric)]
    return {
        **_digests(
            [metric.schema_path for metric in named if isinstance(metric, JsonSchemaMetric)]
        ),
        **{metric.path.name: file_digest(source_file(metric)) for metric in functions},
    }


def _digests(paths: list[Path]) -> dict[str, str]:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    return {path.name: file_digest(path) for path in paths}
