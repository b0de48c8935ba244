"""The sections `sft` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import DataSource, Section
from dpo_dist.losses import FDivergence, LossName, wrong_combination


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

    def has_second_model(self, *, validates: bool) -> bool:
        """Whether the reference's weights stay beside the policy's: they are needed in every step
        (`reference: live`), or to measure the KL on validation prompts. An adapter's reference is
        in the policy."""
        measures_kl = validates and self.kl.prompts > 0
        return isinstance(self.method, Full) and (self.reference == "live" or measures_kl)

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
