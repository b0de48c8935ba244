"""The job of a training process: a JSON file that the phase writes and every rank reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from dpo_dist.config import ChatTemplate, Checkpointing, Optimization, Section, Sft, Train
from dpo_dist.errors import ConfigError
from dpo_dist.storage.figures import Figures, is_none
from dpo_dist.system.console import counted
from dpo_dist.tracking import TrackedRun
from dpo_dist.training.launch_shape import LaunchShape

# Files through which the phase and its training processes communicate, in the phase's directory.
OUTCOME = "outcome.json"  # the `TrainingOutcome`
STOP = "STOP"  # written by the phase: save and stop
PREEMPTED = "PREEMPTED"  # written by the training: the step at which it saved and stopped

# `gradient_checkpointing: auto` plans to fill at most this share of the free memory: plans do not
# include temporary buffers, fragmentation and the libraries.
MEMORY_SHARE = 0.8


class TrainingOutcome(Figures):
    """The result of a training; the model has the weights of `selected_step`. The peaks are those
    of the process that needed most: its resident set, and what PyTorch allocated on its GPU (None
    without a GPU)."""

    steps: int
    selected_step: int
    peak_rss_bytes: int
    peak_device_bytes: int | None = Field(None, exclude_if=is_none)


class InitialReference(Section):
    """A reference other than the weights that training starts from; `identity` identifies it."""

    model: str
    adapter: Path | None = None
    identity: dict[str, JsonValue]


class TrainingJob(Section):
    """An SFT or DPO training, or the pass that computes the reference's log-probs for DPO.

    - `adapter`: the adapter that DPO starts from; None if it starts from `model` itself.
    - `rows`, `validation_rows`: parquet files of token ids, `input_ids, completion_mask` for SFT,
      `id, row, tokens, prompt_ids, chosen_ids, rejected_ids` for DPO.
    - `start`: identifies the weights that DPO starts from. They are also the reference, unless
      `reference` is another one. `reference_folder` has the log-probs of either.
    - `shape`: the processes that train, and what is sharded between them.
    - `planned_peak_bytes`: planned memory per process, by kind of activation checkpointing.
    - `flops_per_token`: floating-point operations of training per token, on average over the rows,
      without the reference and without what checkpointing repeats.
    - `gpu_flops`: bf16 FLOP/s of a GPU by its data sheet; None if unknown, or to train in float32.
    - `checkpoint`: where training resumes; with `reshard`, from its universal form.
    - `run_file`: the run file with all defaults, for trackers.
    - `logs`: the folder for the logs of the processes; None: they write to the console.
    """

    kind: Literal["sft", "dpo", "reference"]
    settings: Sft | Train
    shape: LaunchShape = LaunchShape()
    model: str
    adapter: Path | None = None
    dtype: Literal["bfloat16", "float32"]
    trust_remote_code: bool = False
    template: ChatTemplate = ChatTemplate()
    rows: Path
    validation_rows: Path | None = None
    reference_folder: Path | None = None
    start: dict[str, JsonValue] = Field(default_factory=dict)
    reference: InitialReference | None = None
    planned_peak_bytes: dict[Checkpointing, int]
    flops_per_token: float = 0.0
    gpu_flops: float | None = None
    out: Path
    seed: int
    run_name: str
    wandb: TrackedRun | None = None
    run_file: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Path | None = None
    reshard: bool = False
    logs: Path | None = None

    @property
    def model_dir(self) -> Path:
        """The directory of the finished adapter or model."""
        return self.out / "model"


def accumulation_steps(settings: Optimization, processes: int) -> int:
    """Micro-batches per process and optimizer step that make up the global batch. Raises
    `ConfigError` if the processes cannot share the global batch evenly."""
    batch, micro = settings.global_batch_size, settings.micro_batch_size
    steps, rest = divmod(batch, micro * processes)
    if not rest:
        return steps
    # The closest settings that work: with the same global batch, and with the next larger one.
    most = max(n for n in range(1, processes + 1) if batch % n == 0)
    smaller = max(n for n in range(1, micro + 1) if batch // most % n == 0)
    with_fewer = f" with {counted(most, 'process', 'processes')}" if most < processes else ""
    raise ConfigError(
        f"global_batch_size {batch} is not a multiple of micro_batch_size {micro} x "
        f"{counted(processes, 'process', 'processes')}: use micro_batch_size {smaller}"
        f"{with_fewer}, or global_batch_size {(steps + 1) * micro * processes}"
    )
