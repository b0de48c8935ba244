"""The sections `evaluate` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import DataSource, Section
from dpo_dist.config.generation import EngineConfig, Sampling
from dpo_dist.config.judging import JudgeConfig, ScorerConfig
from dpo_dist.config.metrics import MetricConfig


class JudgeScore(Section):
    """A score of every answer at the first decoding, from 1 (worst) to 5 (best), by the rubric
    that `judge` names: a rubric about one answer, not about two."""

    label: str = "Judge score (1-5)"
    judge: ScorerConfig


class Benchmarks(Section):
    """Tasks of lm-evaluation-harness (the extra `benchmarks`), to see what got worse elsewhere.

    `limit` takes the first documents of each task only. `include_path` is a folder with tasks of
    one's own.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    limit: PositiveInt | None = None
    include_path: Path | None = None
    chat_template: bool = False
    batch_size: PositiveInt = 8


class Evaluate(Section):
    """The evaluate phase: every arm answers the held-out prompts at every decoding.

    The first decoding is the headline of the table. There `judge` compares all pairs of arms, or
    the `headline` alone, dpo with sft, for a third of the money. `guard`
    names, by their labels, the metrics and judge scores there that may not get worse (null: all
    metrics, []: none); it decides the outcome, and may be changed afterwards.
    """

    prompts: DataSource
    engine: EngineConfig | None = None  # sample.engine when absent
    arms: tuple[Literal["base", "sft", "dpo"], ...] = Field(("base", "sft", "dpo"), min_length=1)
    decodings: tuple[Sampling, ...] = Field((Sampling(temperature=0.0),), min_length=1)
    max_new_tokens: PositiveInt = 160
    metrics: tuple[MetricConfig, ...] = Field(min_length=1)
    judge: JudgeConfig | None = None
    pairwise: Literal["all", "headline"] = "all"
    judge_scores: tuple[JudgeScore, ...] = ()
    benchmarks: Benchmarks | None = None
    guard: tuple[str, ...] | None = None

    @field_validator("arms")
    @classmethod
    def _each_arm_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) < len(arms):
            raise ValueError(f"an arm is named twice: {', '.join(arms)}")
        return arms

    @model_validator(mode="after")
    def _guarded_rows_exist(self) -> Evaluate:
        labels = {row.label for row in (*self.metrics, *self.judge_scores)}
        if unknown := set(self.guard or ()) - labels:
            raise ValueError(
                f"guard: no metric is labelled {', '.join(sorted(map(repr, unknown)))}; available: "
                + ", ".join(sorted(labels))
            )
        return self


class ReportSection(Section):
    """The report phase. The page shows the answers to `samples` prompts, evenly spread, and to
    the `regressions` that are worst."""

    formats: tuple[Literal["html", "md", "json"], ...] = ("html", "md", "json")
    samples: PositiveInt = 12
    regressions: int = Field(24, ge=0)
