"""The schema of run.yaml, whole. `runfile.py` reads the file and words the errors.

Paths of data, rubrics and schemas are relative to the run file, so that a recipe can be moved;
`run.output_dir`, model paths and `train.accelerate_config` are relative to the working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from dpo_dist.config.base import DataSource, Section, required
from dpo_dist.config.evaluation import Benchmarks, Evaluate, JudgeScore, ReportSection
from dpo_dist.config.generation import (
    VLLM_LORA_RANKS,
    EngineConfig,
    HfEngine,
    Sample,
    Sampling,
    Slot,
    VllmEngine,
    VllmServer,
)
from dpo_dist.config.judging import (
    BALANCE_OF_TWO,
    Canaries,
    CanaryKind,
    ClaudeConfig,
    HumanConfig,
    JudgeConfig,
    JudgeSection,
    MetricJudgeConfig,
    OpenAiConfig,
    RewardModelConfig,
    ScorerConfig,
)
from dpo_dist.config.metrics import (
    Better,
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
from dpo_dist.config.preferences import (
    JudgedPreferences,
    PathPreferences,
    Preferences,
    UltraFeedbackPreferences,
)
from dpo_dist.config.rounds import Rounds
from dpo_dist.config.training import (
    Checkpointing,
    Full,
    KlMonitor,
    Lora,
    Method,
    Optimization,
    Sft,
    Train,
)
from dpo_dist.system import keys

__all__ = [
    "BALANCE_OF_TWO",
    "VLLM_LORA_RANKS",
    "Benchmarks",
    "Better",
    "Canaries",
    "CanaryKind",
    "Checkpointing",
    "ClaudeConfig",
    "Config",
    "DataSource",
    "DistinctMetric",
    "EngineConfig",
    "Evaluate",
    "ExactMatchMetric",
    "FaithfulQuotesMetric",
    "Full",
    "FunctionMetric",
    "HfEngine",
    "HumanConfig",
    "JsonSchemaMetric",
    "JudgeConfig",
    "JudgeScore",
    "JudgeSection",
    "JudgedPreferences",
    "KlMonitor",
    "LabelMatchMetric",
    "LengthMetric",
    "Lora",
    "Method",
    "MetricConfig",
    "MetricJudgeConfig",
    "Model",
    "OpenAiConfig",
    "Optimization",
    "PathPreferences",
    "Preferences",
    "RefusalRateMetric",
    "RegexMetric",
    "RepetitionMetric",
    "ReportSection",
    "RewardModelConfig",
    "RougeLMetric",
    "Rounds",
    "RunSection",
    "Sample",
    "Sampling",
    "ScorerConfig",
    "Section",
    "Sft",
    "Slot",
    "StopRateMetric",
    "Tracking",
    "Train",
    "UltraFeedbackPreferences",
    "VllmEngine",
    "VllmServer",
    "Wandb",
    "required",
]


class RunSection(Section):
    """Where the work goes. Phases write to `<output_dir>/<name>/<phase>/`.

    `point` names a point of a sweep, which `dpo-dist sweep` sets: its training and its evaluation
    go to `<output_dir>/<name>/sweep/<point>/<phase>/` and read the run's other phases.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: Path = Path("runs")
    seed: int = 17
    point: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$",
        max_length=200,  # a file system's names hold 255 bytes
    )


class Model(Section):
    """The models. `sft` is "phase" (what the sft phase trains), a path or Hub id, or null."""

    base: str
    sft: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    trust_remote_code: bool = False


class Wandb(Section):
    """Weights & Biases: one run for the trainings and the report."""

    project: str = "dpo-dist"
    mode: Literal["online", "offline"] = "offline"


class Tracking(Section):
    """Where else the metrics go, besides metrics.jsonl and the console."""

    wandb: Wandb | None = None


class Config(Section):
    """A run file. Sections of phases that are not run may be absent."""

    run: RunSection
    model: Model
    sft: Sft | None = None
    sample: Sample | None = None
    judge: JudgeSection | None = None
    preferences: Preferences = JudgedPreferences()
    train: Train | None = None
    rounds: Rounds | None = None
    evaluate: Evaluate | None = None
    report: ReportSection = ReportSection()
    tracking: Tracking = Tracking()
    _round: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _phases_agree(self) -> Config:
        if self.model.sft == "phase" and self.sft is None:
            raise ValueError("model.sft is `phase`, but there is no `sft` section")
        if self.sft is not None and self.model.sft != "phase":
            raise ValueError("there is an `sft` section, but model.sft is not `phase`")
        judged = self.preferences.source == "judged"
        if self.train is not None and judged and (self.sample is None or self.judge is None):
            raise ValueError(
                "training on judged preferences needs the sections `sample` and `judge`; "
                "or name another preferences.source"
            )
        if self.evaluate is not None and self.evaluate.engine is None and self.sample is None:
            raise ValueError("evaluate.engine is missing, and there is no sample.engine to use")
        balanced = self.judge is not None and self.judge.balance is not None
        if balanced and self.sample is not None and len(self.sample.slots) > 2:
            raise ValueError(BALANCE_OF_TWO.format(len(self.sample.slots)))
        return self

    @model_validator(mode="after")
    def _rounds_have_their_phases(self) -> Config:
        if self.rounds is None:
            return self
        phases = {"sample": self.sample, "judge": self.judge, "train": self.train}
        if missing := [f"`{name}`" for name, section in phases.items() if section is None]:
            raise ValueError(f"`rounds` needs the section {missing[0]}: every round repeats it")
        if self.preferences.source != "judged":
            raise ValueError(
                "`rounds` needs preferences.source `judged`: every round trains on its own pairs"
            )
        assert self.train is not None
        initial = self.rounds.reference == "initial" and self.rounds.count > 1
        if initial and self.train.reference == "live":
            raise ValueError(
                "train.reference: live means the policy that a round starts from; "
                "rounds.reference: initial needs `cached`"
            )
        return self

    @model_validator(mode="after")
    def _adapters_that_vllm_serves(self) -> Config:
        most = VLLM_LORA_RANKS[-1]
        if all(isinstance(engine, HfEngine) for engine in self.engines):
            return self
        for name, section in (("sft", self.sft), ("train", self.train)):
            if section and isinstance(section.method, Lora) and section.method.r > most:
                raise ValueError(
                    f"{name}.method.r is {section.method.r}, and vLLM serves adapters up to a rank "
                    f"of {most}: lower it, or use the engine `hf`"
                )
        return self

    @property
    def round(self) -> int:
        """Which of its `rounds` is at work, counted from 1; 0 where none is."""
        return self._round

    def at_round(self, number: int) -> Config:
        """The same run file at a round of it."""
        config = self.model_copy()
        config._round = number
        return config

    @property
    def evaluation_engine(self) -> EngineConfig:
        """What answers the held-out prompts: the evaluation's own engine, or the sampling's."""
        if self.evaluate is not None and self.evaluate.engine is not None:
            return self.evaluate.engine
        assert self.sample is not None
        return self.sample.engine

    @property
    def engines(self) -> tuple[EngineConfig, ...]:
        """What answers prompts in the phases that are run."""
        judged = self.preferences.source == "judged"
        sampling = (self.sample.engine,) if self.sample is not None and judged else ()
        evaluation = (self.evaluation_engine,) if self.evaluate is not None else ()
        return tuple(dict.fromkeys((*sampling, *evaluation)))

    @property
    def judges(self) -> tuple[JudgeConfig, ...]:
        """Everything that judges in the phases that are run: labels, comparisons of the
        evaluation, scores of single answers."""
        found: list[JudgeConfig] = []
        if self.judge is not None and self.preferences.source == "judged":
            found.append(self.judge.judge)
        if self.evaluate is not None:
            found += [self.evaluate.judge] if self.evaluate.judge is not None else []
            found += [score.judge for score in self.evaluate.judge_scores]
        return tuple(found)

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment's variables whose keys the run uses, sorted. Models and data sets may
        lie on the Hub; a server of one's own may want no key."""
        found = {keys.HUB}
        for judge in self.judges:
            if isinstance(judge, ClaudeConfig):
                found.add(keys.ANTHROPIC)
            elif isinstance(judge, OpenAiConfig):
                found.add(judge.api_key_variable)
        for engine in self.engines:
            if isinstance(engine, VllmServer) and engine.api_key_variable is not None:
                found.add(engine.api_key_variable)
        if self.tracking.wandb is not None and self.tracking.wandb.mode == "online":
            found.add(keys.WANDB)
        return tuple(sorted(found))

    def dump(self, *sections: str) -> dict[str, Any]:
        """The named sections as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json", include=set(sections))
