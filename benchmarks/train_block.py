"""One block of `benchmarks.train`, in its own process.

Trains on a few rows and prints, as JSON, the seconds of every step (the first one includes the
warm-up), the losses, the peak memory, and the speed of a matrix product on the machine.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from dpo_dist.config import Checkpointing, Full, Lora, Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.system.console import quiet_libraries
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.models import load_policy
from dpo_dist.training.preference_trainer import PreferenceTrainer
from dpo_dist.training.trainer import build_dpo_trainer, loss_arguments

GEMM_SIZE = 2048


@dataclass(frozen=True)
class Block:
    """The settings of one process: `trainer` is "ours" or "trl", `rows` a parquet file."""

    trainer: str
    method: str
    rows: str
    out: str
    model: str
    batch: int
    reference: str
    checkpointing: str  # none, selective, full
    learning_rate: float = 5.0e-5
    max_length: int = 1024
    profile: bool = False


class StockTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """TRL's unmodified trainer on token ids, in the order of our sampler."""

    def __init__(self, *args: Any, settings: Train, **kwargs: Any) -> None:
        self._settings = settings
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    _get_train_sampler = PreferenceTrainer._get_train_sampler


class StepTimes(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Seconds of every optimizer step, including the collation of its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class StepProfile(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Prints the time of the second step by operation, to stderr."""

    def __init__(self) -> None:
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self._profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self._profile.stop()
            averages = self._profile.key_averages()
            table = averages.table(sort_by="self_cpu_time_total", row_limit=24)
            print(table, file=sys.stderr)


def build(block: Block) -> Any:
    """The trainer of a block, for one epoch of its rows with one step per batch."""
    method = Lora() if block.method == "lora" else Full()
    settings = Train(
        method=method,
        learning_rate=block.learning_rate,
        global_batch_size=block.batch,
        micro_batch_size=block.batch,
        max_length=block.max_length,
        gradient_checkpointing=block.checkpointing,
        reference="live" if block.reference == "live" else "cached",
        save_steps=1_000_000,
    )
    job = TrainingJob(
        kind="dpo",
        settings=settings,
        model=block.model,
        dtype="bfloat16",
        rows=Path(block.rows),
        reference_folder=Path(block.out) / "reference",
        planned_peak_bytes=dict.fromkeys(get_args(Checkpointing), 0),
        out=Path(block.out),
        seed=0,
        run_name="benchmark",
    )
    trainer = build_dpo_trainer(job) if block.trainer == "ours" else _stock_trainer(job, block)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(block: Block) -> dict[str, Any]:
    """Train a block; its seconds, losses and memory."""
    started = time.perf_counter()
    trainer = build(block)
    built = time.perf_counter() - started
    times = StepTimes()
    trainer.add_callback(times)
    if block.profile:
        trainer.add_callback(StepProfile())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "block": asdict(block),
        "build_seconds": built,
        "step_seconds": times.seconds,
        "losses": losses,
        "peak_bytes": _peak_bytes(),
        "gemm_flops": gemm_flops(trainer.model.device),
    }


def _stock_trainer(job: TrainingJob, block: Block) -> StockTrainer:
    settings = job.settings
    assert isinstance(settings, Train)
    model, peft_config = load_policy(job, torch.device("cpu"))
    return StockTrainer(
        settings=settings,
        model=model,
        args=DPOConfig(
            output_dir=str(job.out / "trl"),
            per_device_train_batch_size=block.batch,
            gradient_accumulation_steps=1,
            learning_rate=block.learning_rate,
            max_length=block.max_length,
            num_train_epochs=1,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=block.checkpointing != "none",
            precompute_ref_log_probs=block.reference != "live",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=0,
            **loss_arguments(settings),
        ),
        train_dataset=Dataset.from_parquet(str(job.rows), cache_dir=str(job.out / "cache")),
        processing_class=load_tokenizer(job.model),
        peft_config=peft_config,
    )


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_flops(device: torch.device, repeats: int = 12) -> float:
    """FLOP/s of a bfloat16 matrix product, the median of `repeats`."""
    a = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median: float = sorted(seconds[2:])[repeats // 2]
    return 2.0 * GEMM_SIZE**3 / median


if __name__ == "__main__":
    quiet_libraries()
    print(json.dumps(run(Block(**json.loads(sys.argv[1])))))
