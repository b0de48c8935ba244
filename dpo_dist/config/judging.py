"""The section `judge`: judges, canaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dpo_dist.config.base import Section
from dpo_dist.config.metrics import MetricConfig, why_no_judge
from dpo_dist.system import keys


class MetricJudgeConfig(Section):
    """Prefers the candidate with the better sum of weighted metrics; equal sums are a tie.

    A metric that is better when lower is subtracted.
    """

    type: Literal["metric"]
    metrics: tuple[MetricConfig, ...] = Field(min_length=1)
    weights: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _a_weight_each(self) -> MetricJudgeConfig:
        if self.weights and len(self.weights) != len(self.metrics):
            raise ValueError(f"{len(self.weights)} weights for {len(self.metrics)} metrics")
        return self

    @model_validator(mode="after")
    def _metrics_that_can_judge(self) -> MetricJudgeConfig:
        for metric in self.metrics:
            if reason := why_no_judge(metric):
                raise ValueError(f"the metric {metric.type} {reason}")
        return self


class ClaudeConfig(Section):
    """Claude; the key comes from ANTHROPIC_API_KEY.

    `transport` is the Messages API (online) or Message Batches (batch: half the price, done
    within a day). No more is asked once `max_usd` would be exceeded. `prices` replaces
    judging/prices.toml.
    """

    type: Literal["claude"]
    model: str
    rubric: Path
    transport: Literal["online", "batch"] = "online"
    max_usd: PositiveFloat | None = None
    prices: Path | None = None
    base_url: str | None = None
    max_tokens: PositiveInt = 4096
    concurrency: PositiveInt = 8
    max_attempts: PositiveInt = 6
    max_hours: PositiveFloat | None = None


class OpenAiConfig(Section):
    """Any server of OpenAI's chat completions with structured output, such as `vllm serve`.

    `base_url` ends with /v1 as a rule. The key comes from the variable `api_key_variable`; a
    server of one's own needs none.
    """

    type: Literal["openai_compatible"]
    model: str
    base_url: str
    rubric: Path
    max_tokens: PositiveInt = 4096
    temperature: float = Field(0.0, ge=0)
    concurrency: PositiveInt = 8
    max_attempts: PositiveInt = 6
    max_hours: PositiveFloat | None = None
    api_key_variable: str = keys.OPENAI


class RewardModelConfig(Section):
    """A sequence classifier with one label, in this process; `model` is a path or Hub id.

    It scores a conversation with its answer; scores no further apart than `tie_margin` are a tie.
    `max_length` is in tokens; what is longer is dropped, never cut.
    """

    type: Literal["reward_model"]
    model: str
    batch_size: PositiveInt = 16
    max_length: PositiveInt = 2048
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    tie_margin: float = Field(0.0, ge=0)
    trust_remote_code: bool = False


class HumanConfig(Section):
    """People, who fill in a sheet (CSV) that is written where `sheet` says."""

    type: Literal["human"]
    sheet: Path


ScorerConfig = Annotated[ClaudeConfig | OpenAiConfig, Field(discriminator="type")]
JudgeConfig = Annotated[
    MetricJudgeConfig | ClaudeConfig | OpenAiConfig | RewardModelConfig | HumanConfig,
    Field(discriminator="type"),
]


BALANCE_OF_TWO = "judge.balance: temperature balances two slots, but there are {}; leave it out"

CanaryKind = Literal["identical", "empty", "padded", "injection", "other_prompt", "own"]


class Canaries(Section):
    """Comparisons whose right answer is known, asked of the judge after the labels.

    `per_kind` of every kind are made of the run's own pairs; `path` adds the user's, rows of
    `{"name", "prompt", "good", "bad", "reference"?}`. Where less than `pass_rate` is right, no
    pair is written, unless what fails is of a kind that `accept` names.
    """

    per_kind: int = Field(4, ge=0)
    path: Path | None = None
    pass_rate: float = Field(0.9, ge=0, le=1)
    accept: tuple[CanaryKind, ...] = ()


class JudgeSection(Section):
    """The judge phase. There is no default judge: the run file names it."""

    judge: JudgeConfig
    both_orders: bool = True
    # the share of the contests that is asked about once more, to measure the judge's own noise
    repeat: float = Field(0.0, ge=0, le=1)
    canaries: Canaries | None = Canaries()
    # of more than two slots: the pair of the best and the worst, or every pair with a verdict
    pairs: Literal["best_vs_worst", "all"] = "best_vs_worst"
    # temperature: of answers of a length, as many pairs prefer the first slot as the second
    balance: Literal["temperature"] | None = None
    # keep: pairs whose two orders do not agree become labels for the robust loss
    inconsistent: Literal["drop", "keep"] = "drop"
