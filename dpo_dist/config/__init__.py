"""The schema of run.yaml; `runfile.py` reads the file and formats the errors.

A `RecipePath` is relative to the run file; other paths (`run.output_dir`, models,
`accelerate_config`) are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, model_validator

from dpo_dist.config.base import ChatTemplate, RecipePath, Resource, Section, required
from dpo_dist.config.evaluation import (
    OWN_LABELS,
    Arm,
    Benchmarks,
    Evaluate,
    Example,
    JudgeScore,
    ReportSection,
)
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
    BilledJudge,
    Canaries,
    CanaryKind,
    ClaudeConfig,
    FunctionJudgeConfig,
    HumanConfig,
    JudgeConfig,
    JudgeSection,
    MetricJudgeConfig,
    OpenAiConfig,
    RewardModelConfig,
    ScorerConfig,
)
from dpo_dist.config.method import ADAPTER_KIND, Full, Lora, Method, is_quantized
from dpo_dist.config.metrics import Better, FunctionMetric, MetricConfig
from dpo_dist.config.sources import (
    DataPreferences,
    DataSource,
    JudgedPreferences,
    MixtureSource,
    Preferences,
    PreferenceSource,
    UltraFeedbackPreferences,
)
from dpo_dist.config.training import (
    Checkpointing,
    KlMonitor,
    Optimization,
    Rounds,
    Sft,
    Train,
)
from dpo_dist.system.console import HUB_KEY, WANDB_KEY

TRACKER_KEYS = {  # by the name in `report_to`
    "wandb": WANDB_KEY,
    "comet_ml": "COMET_API_KEY",
    "neptune": "NEPTUNE_API_TOKEN",
    "clearml": "CLEARML_API_SECRET_KEY",
    "mlflow": "MLFLOW_TRACKING_PASSWORD",
    "swanlab": "SWANLAB_API_KEY",
}


class RunSection(Section):
    """Name, directory and seed. Phases write to `<output_dir>/<name>/<phase>/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory."""
    output_dir: Path = Path("runs")
    """Directory of all runs."""
    seed: int = 17
    """Seed of all random numbers."""


class Model(Section):
    """The models."""

    base: str
    """Path or Hub id of the base model, with safetensors weights."""
    sft: str | None = None
    """The SFT model: "phase" (the sft phase trains it), or the path or Hub id of an adapter or
    whole model. null: DPO starts from `base`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the models for generation, and of frozen weights in training."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    chat_template: RecipePath | None = None
    """A jinja file that replaces the tokenizer's chat template; base models have none."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking: false`."""

    @property
    def template(self) -> ChatTemplate:
        """How conversations are rendered."""
        return ChatTemplate(path=self.chat_template, variables=self.chat_template_kwargs)


class Config(Section):
    """A run file. Sections of phases that do not run may be absent."""

    run: RunSection
    """Name, directory and seed."""
    model: Model
    """The models."""
    sft: Sft | None = None
    """The sft phase."""
    sample: Sample | None = None
    """The sample phase."""
    judge: JudgeSection | None = None
    """The judge phase."""
    preferences: Preferences = JudgedPreferences()
    """The source of the preference pairs."""
    train: Train | None = None
    """The train phase."""
    rounds: Rounds | None = None
    """Iterative DPO; null: one round."""
    evaluate: Evaluate | None = None
    """The evaluate phase."""
    report: ReportSection = ReportSection()
    """The report phase."""

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
                "or set another preferences.source"
            )
        if self.evaluate is not None and self.evaluate.engine is None and self.sample is None:
            raise ValueError("evaluate.engine is missing, and there is no sample.engine instead")
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
                "rounds.reference: initial needs train.reference: cached; with live, the "
                "reference is the policy that the round starts from"
            )
        return self

    @model_validator(mode="after")
    def _ranks_fit_vllm(self) -> Config:
        most = VLLM_LORA_RANKS[-1]
        if all(isinstance(engine, HfEngine) for engine in self.engines):
            return self
        for name, section in (("sft", self.sft), ("train", self.train)):
            if section is None or not isinstance(method := section.method, Lora):
                continue
            rank = max([method.r, *method.rank_pattern.values()])
            if rank > most:
                raise ValueError(
                    f"{name}.method.r is {rank}, and vLLM serves adapters up to a rank "
                    f"of {most}: lower it, or use the engine `hf`"
                )
            for key in ("use_dora", "modules_to_save"):
                if getattr(method, key):
                    raise ValueError(
                        f"{name}.method.{key}: vLLM does not serve such adapters: remove it, or "
                        "use the engine `hf`"
                    )
        return self

    @model_validator(mode="after")
    def _adapters_agree(self) -> Config:
        """DPO continues the adapter of the sft phase."""
        if self.sft is None or self.train is None:
            return self
        sft, dpo = self.sft.method, self.train.method
        if isinstance(sft, Lora) and isinstance(dpo, Lora):
            for key in ADAPTER_KIND:
                wanted, found = getattr(dpo, key), getattr(sft, key)
                if wanted != found:
                    raise ValueError(
                        f"train.method.{key} is {_shown(wanted)} and sft.method.{key} is "
                        f"{_shown(found)}, but DPO continues training the SFT adapter: set both to "
                        "the same value"
                    )
        return self

    @property
    def evaluation_engine(self) -> EngineConfig:
        """The engine that answers the held-out prompts."""
        if self.evaluate is not None and self.evaluate.engine is not None:
            return self.evaluate.engine
        assert self.sample is not None
        return self.sample.engine

    @property
    def engines(self) -> tuple[EngineConfig, ...]:
        """The engines of the phases that run."""
        judged = self.preferences.source == "judged"
        sampling = (self.sample.engine,) if self.sample is not None and judged else ()
        evaluation = (self.evaluation_engine,) if self.evaluate is not None else ()
        return tuple(dict.fromkeys((*sampling, *evaluation)))

    @property
    def judges(self) -> tuple[JudgeConfig, ...]:
        """The judges of the phases that run: for labels, for the comparisons of the evaluation and
        for scores of single answers."""
        judges: list[JudgeConfig] = []
        if self.judge is not None and self.preferences.source == "judged":
            judges.append(self.judge.judge)
        if self.evaluate is not None:
            judges += [self.evaluate.judge] if self.evaluate.judge is not None else []
            judges += [score.judge for score in self.evaluate.judge_scores]
        return tuple(judges)

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables with the API keys that the run uses, sorted. The Hub's is
        always one of them, since models and data sets may be on the Hub."""
        resources: list[Resource] = [*self.judges, *self.engines]
        used = {name for resource in resources for name in resource.key_variables}
        used |= {TRACKER_KEYS[name] for name in self.trackers if name in TRACKER_KEYS}
        return tuple(sorted({HUB_KEY, *used}))

    @property
    def trackers(self) -> tuple[str, ...]:
        """The experiment trackers of all trainings."""
        sections = [section for section in (self.sft, self.train) if section is not None]
        return tuple(dict.fromkeys(name for section in sections for name in section.trackers))

    def fixed_sections(self, names: Collection[str]) -> dict[str, JsonValue]:
        """The named sections for a fingerprint, without the keys marked `Runtime`."""
        sections = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        return {name: section and section.fixed() for name, section in sections.items()}

    def dump(self) -> dict[str, JsonValue]:
        """The run file as JSON values, with all defaults."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return values


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
