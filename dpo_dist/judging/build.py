"""Builds judges from the run file's sections."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.config import (
    ClaudeConfig,
    FunctionJudgeConfig,
    HumanConfig,
    JudgeConfig,
    MetricJudgeConfig,
    OpenAiConfig,
    RewardModelConfig,
    ScorerConfig,
)
from dpo_dist.judging.judge import BALLOTS, Judge
from dpo_dist.judging.rubric import COMPARE, SCORE, Form
from dpo_dist.metrics import build_metrics


def build_judge(config: JudgeConfig, folder: Path) -> Judge:
    """The judge of a section. `folder` is the phase's folder, where a judge keeps what a later run
    needs after an interruption. Raises `ConfigError` if the judge misses something, such as a key
    or a file."""
    match config:
        case MetricJudgeConfig():
            from dpo_dist.judging.metric_judge import MetricJudge

            metrics = build_metrics(config.metrics)
            return MetricJudge(metrics, config.weights or (1.0,) * len(metrics))
        case ClaudeConfig() | OpenAiConfig():
            return _language_model(config, folder, COMPARE)
        case RewardModelConfig():
            from dpo_dist.judging.reward_model import RewardModelJudge

            return RewardModelJudge(config)
        case HumanConfig():
            from dpo_dist.judging.human import HumanJudge

            return HumanJudge(config, folder / BALLOTS)
        case FunctionJudgeConfig():
            from dpo_dist.judging.function_judge import FunctionJudge

            return FunctionJudge(config)


def build_scorer(config: ScorerConfig, folder: Path) -> Judge:
    """A language model that scores single answers (`single_answer`)."""
    return _language_model(config, folder, SCORE)


def _language_model(config: ScorerConfig, folder: Path, form: Form) -> Judge:
    match config:
        case ClaudeConfig(transport="batch"):
            from dpo_dist.judging.claude_batches import ClaudeBatchJudge

            return ClaudeBatchJudge(config, folder, form)
        case ClaudeConfig():
            from dpo_dist.judging.claude import ClaudeJudge

            return ClaudeJudge(config, form)
        case OpenAiConfig():
            from dpo_dist.judging.openai_compatible import OpenAiJudge

            return OpenAiJudge(config, form)
