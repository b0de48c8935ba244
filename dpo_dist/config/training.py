"""The sections `sft`, `train` and `rounds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dpo_dist.config.base import RUNTIME, Section
from dpo_dist.config.method import Full, Lora, Method
from dpo_dist.config.sources import DataSource
from dpo_dist.errors import ConfigError
from dpo_dist.losses import FDivergence, LossName, wrong_combination
from dpo_dist.system.machine import has_cuda, visible_gpus

ACCELERATE_CONFIGS = Path(__file__).parents[1] / "accelerate_configs"  # the shipped files


Checkpointing = Literal["none", "selective", "full"]


# Keys of `args` that change no result.
RUNTIME_ARGS = frozenset(
    {
        *("report_to", "run_name", "project", "logging_first_step", "log_on_each_node"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("log_level", "log_level_replica", "include_num_input_tokens_seen", "debug"),
        *("skip_memory_metrics", "torch_empty_cache_steps", "ddp_timeout", "ddp_bucket_cap_mb"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    }
)


class Optimization(Section):
    """The common keys of the two training phases. The global batch is fixed. Gradient accumulation
    follows from it, the micro-batch and the number of processes, so the same file trains the same
    way on any number of devices."""

    method: Method = Lora()
    """Train adapters or all weights."""
    learning_rate: PositiveFloat
    """Peak learning rate of AdamW."""
    num_epochs: PositiveFloat = 1
    """Passes over the data."""
    global_batch_size: PositiveInt = 16
    """Pairs (or rows) per optimizer step, over all processes."""
    micro_batch_size: Annotated[PositiveInt, RUNTIME] = 2
    """Pairs (or rows) per forward pass of a process."""
    max_length: PositiveInt = 1024
    """Maximum length of a prompt with its answer, in tokens; longer ones are dropped, never
    truncated."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises to its peak."""
    bf16: bool = True
    """Train in bfloat16; false: in float32."""
    gradient_checkpointing: Annotated[Checkpointing | Literal["auto"], RUNTIME] = "auto"
    """Which activations are recomputed; auto: as few as the memory allows."""
    logging_steps: Annotated[PositiveInt, RUNTIME] = 1
    """Steps between two lines of metrics.jsonl."""
    save_steps: Annotated[PositiveInt | None, RUNTIME] = None
    """Steps between two checkpoints; null: a quarter of the run, or more if writing them would take
    over 5 % of the time."""
    save_minutes: Annotated[PositiveFloat | None, RUNTIME] = 30
    """A checkpoint is also written after this many minutes without one; null: only by steps."""
    keep_checkpoints: Annotated[PositiveInt, RUNTIME] = 2
    """Number of newest checkpoints to keep during training, in addition to the best."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Other arguments of TRL's trainer, such as {lr_scheduler_type: cosine, weight_decay: 0.01,
    optim: adamw_8bit, report_to: [wandb]}. Those of trackers, logs and data loading may change on
    resume."""
    accelerate_config: Annotated[Path | None, RUNTIME] = None
    """Configuration of `accelerate launch`: processes, sharding, precision. A file, or the name of
    one in `accelerate_configs/`, such as `zero2`; under a name, each GPU of the machine gets a
    process. null: `cpu` without a GPU, `single_gpu` with one, `zero2` with several. Not used if
    `accelerate launch` or torchrun has started the command."""

    @model_validator(mode="after")
    def _check_batch_sizes(self) -> Optimization:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self

    def fixed(self) -> dict[str, JsonValue]:
        """The section for a fingerprint, without the arguments that change no result."""
        args = {key: value for key, value in self.args.items() if key not in RUNTIME_ARGS}
        return {**super().fixed(), "args": args}

    @property
    def trackers(self) -> tuple[str, ...]:
        """The experiment trackers in `args.report_to`."""
        named = self.args.get("report_to") or "none"
        names = named if isinstance(named, list) else [named]
        return tuple(str(name) for name in names if name != "none")

    @property
    def accelerate_file(self) -> Path:
        """The file of `accelerate_config`. Raises `ConfigError` for an unknown name."""
        return accelerate_file(self.accelerate_config, len(visible_gpus()) if has_cuda() else 0)


def accelerate_file(named: Path | None, gpus: int) -> Path:
    """The file of an accelerate configuration that is given by its path or name, or None, on a
    machine with a number of GPUs. Raises `ConfigError` for an unknown name."""
    if named is None:
        named = Path("cpu" if not gpus else "single_gpu" if gpus == 1 else "zero2")
    if named.suffix or len(named.parts) != 1 or named.is_file():
        return named
    path = ACCELERATE_CONFIGS / f"{named}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml")))
        raise ConfigError(f"accelerate_config: {named}: no such file or name; names: {known}")
    return path


class Sft(Optimization):
    """The optional sft phase."""

    data: DataSource
    """Demonstrations: rows `{"prompt", "completion"}` or `{"messages"}`, or another format."""
    learning_rate: PositiveFloat = 5.0e-4


class KlMonitor(Section):
    """KL of the policy from the reference, on answers that the policy generates during training. It
    is measured at every validation."""

    prompts: int = Field(16, ge=0)
    """Number of validation prompts that the policy answers; 0: do not measure the KL."""
    max_new_tokens: PositiveInt = 64
    """Maximum length of an answer, in tokens."""
    max_share: Annotated[PositiveFloat, RUNTIME] = 0.05
    """Maximum share of the training's time. If a measurement at every validation would take more,
    fewer validations have one."""
    budget: PositiveFloat | None = None
    """Warn if the KL exceeds this, in nats per token; null: no budget."""
    stop: bool = False
    """Stop the training when the KL exceeds the budget."""

    @model_validator(mode="after")
    def _check_budget(self) -> KlMonitor:
        if self.stop and self.budget is None:
            raise ValueError("`stop` needs a `budget` (nats per token)")
        if self.budget is not None and self.prompts == 0:
            raise ValueError("a `budget` needs `prompts` to measure the KL on")
        return self


class Train(Optimization):
    """The train phase: DPO against the frozen SFT model."""

    loss: dict[LossName, PositiveFloat] = Field({"sigmoid": 1.0}, min_length=1)
    """A loss of TRL, or a weighted sum such as {sigmoid: 1.0, sft: 0.2}. Combinations without a
    meaning are refused."""
    beta: PositiveFloat = 0.1
    """Strength of the constraint to stay close to the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrong labels."""
    f_divergence: FDivergence = "reverse_kl"
    """Divergence from the reference in the loss."""
    f_alpha: float = 0.5
    """Alpha of f_divergence `alpha_divergence`."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """LD-DPO: weight of the tokens by which the longer answer exceeds the shorter; null: off."""
    wpo: bool = False
    """WPO: weight each pair by the policy's probability of sampling it."""
    discopop_tau: PositiveFloat = 0.05
    """Temperature of the loss discopop."""
    learning_rate: PositiveFloat = 5.0e-6
    eval_per_epoch: PositiveInt = 5
    """Validations per epoch, on the validation pairs."""
    kl: KlMonitor = KlMonitor()
    """Measures the KL from the reference during training."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed: each prompt once, without padding. padded: batches of TRL. auto: packed if the model
    supports it."""
    reference: Literal["cached", "live"] = "cached"
    """cached: compute the reference's log-probs once per row. live: compute them in every step."""
    select: Literal["last", "best"] = "last"
    """The step that becomes the model. best: the validated step with the highest validation
    accuracy; of equal ones the earliest."""
    merge: bool = False
    """With LoRA: also write the merged model."""

    def has_second_model(self, *, validates: bool) -> bool:
        """Whether training holds the reference's weights in addition to the policy's: in full
        fine-tuning, if `reference` is `live` or the KL is measured (`validates`: there are
        validation pairs). With LoRA, the base weights of the policy are the reference."""
        measures_kl = validates and self.kl.prompts > 0
        return isinstance(self.method, Full) and (self.reference == "live" or measures_kl)

    @field_validator(
        "loss",
        mode="before",
        json_schema_input_type=LossName | dict[LossName, PositiveFloat],
    )
    @classmethod
    def _accept_one_name(cls, value: object) -> object:
        return {value: 1.0} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_dropout(self) -> Train:
        if isinstance(self.method, Lora) and self.method.dropout:
            raise ValueError(
                "method.dropout: TRL sets it to 0 in DPO, so that policy and reference are "
                "compared without noise. Remove it, or set it in sft.method"
            )
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> Train:
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


class Rounds(Section):
    """Iterative DPO: each round samples from the current policy, judges, trains and evaluates.
    Short form: `rounds: 3`. The first round starts from the SFT model, every other round from the
    previous round's policy."""

    count: PositiveInt
    """Number of rounds."""
    reference: Literal["previous", "initial"] = "previous"
    """The reference of a round: the policy that it starts from, or the initial SFT model."""
    prompts: Literal["all", "split"] = "all"
    """all: every round uses all prompts. split: each round uses a different part."""

    @model_validator(mode="before")
    @classmethod
    def _accept_a_number(cls, value: object) -> object:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return {"count": value} if is_number else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        whole = super().__get_pydantic_json_schema__(core_schema, handler)
        return {"anyOf": [whole, {"type": "integer", "exclusiveMinimum": 0}]}
