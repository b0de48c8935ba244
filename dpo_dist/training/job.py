"""What a training process is told: one JSON file, written by the phase, read by every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from dpo_dist.config import Checkpointing, Optimization, Section, Sft, Train
from dpo_dist.errors import ConfigError
from dpo_dist.system.console import counted
from dpo_dist.tracking import TrackedRun

# Files between the phase and its training processes, in the phase's directory.
OUTCOME = "outcome.json"  # what became of the training
STOP = "STOP"  # the phase asks: save and stop
PREEMPTED = "PREEMPTED"  # the answer: the step that was saved


class InitialReference(Section):
    """A reference that training does not start from; `identity` is what tells its weights."""

    model: str
    adapter: Path | None = None
    identity: dict[str, Any]


class TrainingJob(Section):
    """An SFT or DPO training, or the pass that computes the log-probs of a DPO's reference.

    `rows` and `validation_rows` are parquet files of token ids: `input_ids, completion_mask`
    for SFT, `id, row, tokens, prompt_ids, chosen_ids, rejected_ids` for DPO. `adapter` is the
    adapter that DPO starts from, or None when it starts from `model` itself; `start` identifies
    those weights. They are the reference, too, unless `reference` is another; its log-probs lie
    in `reference_folder`. `planned_peak_bytes` is a process's planned memory by the kind of
    activation checkpointing. `checkpoint` is where training goes on, `reshard` says that its
    universal form has to be read (universal.py). `logs` is where its processes write to; None:
    wherever they were started.
    """

    kind: Literal["sft", "dpo", "reference"]
    settings: Sft | Train
    model: str
    adapter: Path | None = None
    dtype: Literal["bfloat16", "float32"]
    trust_remote_code: bool = False
    rows: Path
    validation_rows: Path | None = None
    reference_folder: Path | None = None
    start: dict[str, Any] = Field(default_factory=dict)
    reference: InitialReference | None = None
    planned_peak_bytes: dict[Checkpointing, int]
    out: Path
    seed: int
    run_name: str
    wandb: TrackedRun | None = None
    checkpoint: Path | None = None
    reshard: bool = False
    logs: Path | None = None

    @property
    def model_dir(self) -> Path:
        """Where the finished adapter or model goes."""
        return self.out / "model"


# The share of the free memory that `gradient_checkpointing: auto` may fill by plan: the rest is for
# what a plan leaves out (temporaries, the allocator's gaps, the libraries).
FITS = 0.8
_OFFLOADED = ("param", "optimizer")


def num_processes(accelerate_config: Path) -> int:
    """How many processes an accelerate configuration starts, on all machines together."""
    return launch_shape(accelerate_config)[0]


def machines(accelerate_config: Path) -> int:
    """How many machines an accelerate configuration is for."""
    return int(read_accelerate_config(accelerate_config).get("num_machines", 1))


def launch_shape(accelerate_config: Path) -> tuple[int, int]:
    """(processes, ZeRO stage or 0) of an accelerate configuration."""
    values = read_accelerate_config(accelerate_config)
    return int(values["num_processes"]), _zero_stage(values.get("deepspeed_config") or {})


def for_one_process(accelerate_config: Path) -> bool:
    """Whether accelerate starts one process, whatever their number is."""
    kind = read_accelerate_config(accelerate_config).get("distributed_type")
    return kind in ("NO", False)  # YAML's unquoted NO


def uses_fsdp(accelerate_config: Path) -> bool:
    return read_accelerate_config(accelerate_config).get("distributed_type") == "FSDP"


def offloads(accelerate_config: Path) -> bool:
    """Whether DeepSpeed keeps weights and optimizer in the CPU's memory."""
    settings = read_accelerate_config(accelerate_config).get("deepspeed_config") or {}
    if file := settings.get("deepspeed_config_file"):
        zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
        devices = [(zero.get(f"offload_{part}") or {}).get("device") for part in _OFFLOADED]
    else:
        devices = [settings.get(f"offload_{part}_device") for part in _OFFLOADED]
    return all(device in ("cpu", "nvme") for device in devices)


def read_accelerate_config(accelerate_config: Path) -> dict[str, Any]:
    """Its values. Raises `ConfigError` where it is no accelerate configuration."""
    try:
        values = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
        int(values["num_processes"]), int(values.get("num_machines", 1))
        _zero_stage(values.get("deepspeed_config") or {})
        return dict(values)
    except FileNotFoundError:
        raise ConfigError(f"accelerate_config: {accelerate_config}: no such file") from None
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"accelerate_config: {accelerate_config}: cannot read `num_processes` ({error})"
        ) from None


def _zero_stage(settings: dict[str, Any]) -> int:
    if file := settings.get("deepspeed_config_file"):
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        return int(settings.get("zero_optimization", {}).get("stage", 0))
    return int(settings.get("zero_stage", 0))


def accumulation_steps(settings: Optimization, processes: int) -> int:
    """Micro-batches per optimizer step and process that make up the global batch.

    Raises `ConfigError` when the processes cannot share the global batch evenly.
    """
    per_round = settings.micro_batch_size * processes
    if settings.global_batch_size % per_round:
        raise ConfigError(
            f"global_batch_size {settings.global_batch_size} is not a multiple of "
            f"micro_batch_size {settings.micro_batch_size} x "
            f"{counted(processes, 'process', 'processes')}: {_what_would_do(settings, processes)}"
        )
    return settings.global_batch_size // per_round


def _what_would_do(settings: Optimization, processes: int) -> str:
    """The settings with the same global batch, and the nearest global batch above it."""
    batch = settings.global_batch_size
    most = max(n for n in range(1, processes + 1) if batch % n == 0)
    share = batch // most
    micro = max(n for n in range(1, settings.micro_batch_size + 1) if share % n == 0)
    same = f"micro_batch_size {micro}" + (
        f" with {counted(most, 'process', 'processes')}" if most < processes else ""
    )
    per_round = settings.micro_batch_size * processes
    return f"{same} would do, or global_batch_size {-(-batch // per_round) * per_round}"
