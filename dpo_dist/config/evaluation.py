"""The sections `evaluate` and `report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

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


OWN_LABELS = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
OWN_MODELS = tuple(OWN_LABELS)  # the arms that are the run's own models


class Example(Section):
    """A solved example, which an arm sees before every prompt."""

    prompt: str = Field(min_length=1)
    """The user's turn."""
    completion: str = Field(min_length=1)
    """The assistant's turn."""


Examples: TypeAlias = Annotated[
    Annotated[tuple[Example, ...], Tag("examples")] | Annotated[DataSource, Tag("rows")],
    Discriminator(lambda value: "examples" if isinstance(value, list | tuple) else "rows"),
]


class Arm(Section):
    """A model in the evaluation, with what it is shown besides the prompt. An arm named base, sft
    or dpo is the run's own model of that name; any other arm needs `model` or `adapter`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name in tables and files."""
    model: str | None = None
    """The run's own base, sft or dpo under another name, or the path or Hub id of a whole model."""
    adapter: Path | None = None
    """The folder of a LoRA adapter for `model.base`."""
    system: str | None = Field(None, min_length=1)
    """System prompt of this arm; it replaces that of the prompts. null: that of the prompts."""
    few_shot: Examples | None = None
    """Solved examples before every prompt: a list of `{prompt, completion}`, or rows as in
    `sft.data`. The judge does not see them."""

    @model_validator(mode="after")
    def _one_model(self) -> Arm:
        if self.few_shot == ():
            raise ValueError("few_shot: at least one example is needed; null: no examples")
        own = self.name in OWN_MODELS
        given = [key for key in ("model", "adapter") if getattr(self, key) is not None]
        if own and given:
            raise ValueError(
                f"the arm {self.name} is the run's own model; remove `{given[0]}`, or choose "
                "another name"
            )
        if len(given) > 1:
            raise ValueError(f"the arm {self.name} has both `model` and `adapter`; keep one")
        if not own and not given:
            raise ValueError(
                f"the arm {self.name} needs `model` or `adapter`; only {', '.join(OWN_MODELS)} are "
                "the run's own models"
            )
        return self

    @property
    def own(self) -> str | None:
        """Which of the run's own models the arm is; None: another model."""
        named = self.model or self.name
        return named if self.adapter is None and named in OWN_MODELS else None

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        label = OWN_LABELS.get(self.name, self.name)
        seen = ["examples"] if self.few_shot is not None else []
        if self.system is not None:
            seen.insert(0, "own system prompt")
        return f"{label} ({', '.join(seen)})" if seen and self.name in OWN_LABELS else label

    @property
    def is_plain(self) -> bool:
        """Whether the arm sees every prompt as it is."""
        return self.system is None and self.few_shot is None


AnyArm: TypeAlias = Annotated[
    Annotated[str, Tag("own"), WithJsonSchema({"enum": list(OWN_MODELS)})]
    | Annotated[Arm, Tag("arm")],
    Discriminator(lambda value: "own" if isinstance(value, str) else "arm"),
]


class Evaluate(Section):
    """The evaluate phase: every arm answers the held-out prompts at every decoding. The first
    decoding is the headline of the table."""

    prompts: DataSource
    """The held-out prompts; rows as in `sample.prompts`."""
    engine: EngineConfig | None = None
    """The engine that generates the answers; null: `sample.engine`."""
    arms: tuple[AnyArm, ...] = OWN_MODELS
    """The models that are compared: base, sft and dpo by name, or sections with another model, a
    system prompt or examples."""
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
    def _each_arm_once(cls, arms: tuple[str | Arm, ...]) -> tuple[str | Arm, ...]:
        if not arms:
            raise ValueError("give at least 1 item")
        for arm in arms:
            if isinstance(arm, str) and arm not in OWN_MODELS:
                raise ValueError(
                    f"{arm!r} is not one of {', '.join(OWN_MODELS)}; another model is a section: "
                    "{name: ..., model: ...} or {name: ..., adapter: ...}"
                )
        names = [arm if isinstance(arm, str) else arm.name for arm in arms]
        # A name is part of file names, which some file systems compare without case.
        if len({name.casefold() for name in names}) < len(names):
            raise ValueError(f"an arm is listed twice: {', '.join(names)}")
        return arms

    @property
    def named_arms(self) -> Mapping[str, Arm]:
        """The arms by name, in the order of the run file."""
        arms = [Arm(name=arm) if isinstance(arm, str) else arm for arm in self.arms]
        return {arm.name: arm for arm in arms}

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
