"""The sections `evaluate` and `report`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import RUNTIME, RecipePath, Resource, Section
from dpo_dist.config.generation import EngineConfig, Sampling
from dpo_dist.config.judging import JudgeConfig, ScorerConfig
from dpo_dist.config.metrics import MetricConfig
from dpo_dist.config.sources import DataSource


class JudgeScore(Section):
    """A judge's score of every answer at the first decoding, from 1 (worst) to 5 (best)."""

    label: str = "Judge score (1-5)"
    """Name in tables and in `guard`."""
    judge: ScorerConfig
    """The judge. Its rubric rates one answer; it does not compare two."""


class Benchmarks(Resource):
    """Tasks of lm-evaluation-harness (extra `benchmarks`), to find regressions on other tasks."""

    needs_gpu: ClassVar[bool] = True

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the tasks in the harness."""
    limit: PositiveInt | None = None
    """Use only the first n documents of each task."""
    include_path: RecipePath | None = None
    """A folder with your own tasks."""
    chat_template: bool = False
    """Apply the model's chat template."""
    batch_size: PositiveInt = 8
    """Documents per batch."""


class Evaluate(Section):
    """The evaluate phase: every arm answers the held-out prompts at every decoding. The first
    decoding is the headline of the table."""

    prompts: DataSource
    """The held-out prompts; rows as in `sample.prompts`."""
    engine: EngineConfig | None = None
    """The engine that generates the answers; null: `sample.engine`."""
    arms: tuple[Literal["base", "sft", "dpo"], ...] = Field(("base", "sft", "dpo"), min_length=1)
    """The models that are compared."""
    decodings: tuple[Sampling, ...] = Field((Sampling(temperature=0.0),), min_length=1)
    """Sampling settings of the answers."""
    max_new_tokens: PositiveInt = 160
    """Maximum length of an answer, in tokens."""
    metrics: tuple[MetricConfig, ...] = Field(min_length=1)
    """Metrics that need no judge."""
    judge: JudgeConfig | None = None
    """The judge that compares the arms at the first decoding; null: no comparison."""
    pairwise: Literal["all", "headline"] = "all"
    """Which arms `judge` compares. all: all pairs. headline: only dpo with sft, at a third of the
    cost."""
    judge_scores: tuple[JudgeScore, ...] = ()
    """Scores of single answers at the first decoding."""
    benchmarks: Benchmarks | None = None
    """Benchmarks that every arm runs."""
    guard: Annotated[tuple[str, ...] | None, RUNTIME] = None
    """Labels of the metrics and judge scores that must not get worse; they decide the outcome.
    null: all metrics; []: none."""

    @field_validator("arms")
    @classmethod
    def _each_arm_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) < len(arms):
            raise ValueError(f"an arm is listed twice: {', '.join(arms)}")
        return arms

    @model_validator(mode="after")
    def _guarded_rows_exist(self) -> Evaluate:
        labels = {row.label for row in (*self.metrics, *self.judge_scores)}
        if unknown := set(self.guard or ()) - labels:
            names, known = ", ".join(sorted(map(repr, unknown))), ", ".join(sorted(labels))
            raise ValueError(f"guard: no metric is labelled {names}; available: {known}")
        return self


class ReportSection(Section):
    """The report phase."""

    formats: tuple[Literal["html", "md", "json"], ...] = ("html", "md", "json")
    """Formats of the report files."""
    samples: PositiveInt = 12
    """Number of evenly spread prompts whose answers the page shows."""
    regressions: int = Field(24, ge=0)
    """Number of the worst regressions that the page shows."""
