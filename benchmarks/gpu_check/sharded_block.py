"""One training of step 8, under `accelerate launch`: three steps with KL, checkpoints, a model."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, get_args


@dataclass(frozen=True)
class Block:
    """`rows` is the folder with rows.parquet and validation.parquet; `stop` ends the training at
    its second step with a checkpoint, as SIGTERM does."""

    model: str
    rows: str
    out: str
    method: str
    accelerate_config: str
    on_gpu: bool
    stop: bool = False
    checkpoint: str | None = None


def main(block: Block) -> None:
    import torch
    import transformers.trainer
    from transformers import TrainerCallback

    from dpo_dist.config import Checkpointing, Full, KlMonitor, Lora, Train
    from dpo_dist.storage.artifacts import write_json
    from dpo_dist.system import ranks
    from dpo_dist.training.job import TrainingJob
    from dpo_dist.training.launch_shape import LaunchShape
    from dpo_dist.training.trainer import train

    ready: list[int] = []
    preempted = Event()

    class Observer(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """Notes the memory once the model is prepared, before the first step; stops."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ready.append(torch.cuda.memory_allocated() if block.on_gpu else 0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if block.stop and state.global_step == 1:
                preempted.set()

    transformers.trainer.DEFAULT_CALLBACKS.append(Observer)
    shape = LaunchShape.read(Path(block.accelerate_config))
    settings = Train(
        method=Lora() if block.method == "lora" else Full(),
        learning_rate=1e-6,
        global_batch_size=4,
        micro_batch_size=2,
        max_length=2048,
        eval_per_epoch=1,
        kl=KlMonitor(prompts=2, max_new_tokens=8),
        gradient_checkpointing="none",
        save_steps=100,
        accelerate_config=Path(block.accelerate_config),
    )
    out, rows = Path(block.out), Path(block.rows)
    out.mkdir(parents=True, exist_ok=True)
    job = TrainingJob(
        kind="dpo",
        settings=settings,
        shape=shape,
        model=block.model,
        dtype="bfloat16",
        rows=rows / "rows.parquet",
        validation_rows=rows / "validation.parquet",
        reference_folder=out / "reference",
        planned_peak_bytes=dict.fromkeys(get_args(Checkpointing), 0),
        out=out,
        seed=0,
        run_name="gpu-check",
        checkpoint=Path(block.checkpoint) if block.checkpoint else None,
    )
    started = time.monotonic()
    train(job, preempted)
    if ranks.is_main():
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        divergences = [v for line in lines for k, v in line.items() if "kl" in k.lower()]
        figures = {
            "ready_bytes": ready[0],
            "planned_bytes": _planned(block, shape),
            "peak_bytes": torch.cuda.max_memory_allocated()
            if block.on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "seconds": time.monotonic() - started,
            "losses": losses,
            "losses_finite": all(map(math.isfinite, losses)) and bool(losses),
            "kl_finite": all(map(math.isfinite, divergences)) and bool(divergences),
        }
        write_json(out / "figures.json", figures)


def _planned(block: Block, shape: Any) -> int:
    """Bytes of a process before its first batch: without gradients and buckets."""
    from transformers import AutoConfig

    from dpo_dist.config import Full, Lora, Method
    from dpo_dist.estimates.memory import ModelShape
    from dpo_dist.estimates.sharding import Strategy, model_states

    model = ModelShape.of(AutoConfig.from_pretrained(block.model))
    stage: Strategy = "zero2" if shape.zero_stage == 2 else "zero3"
    method: Method = Lora() if block.method == "lora" else Full()
    second = model.parameters if block.method == "full" else 0  # measures the KL
    parts = model_states(model, method, stage, shape.processes, reference=second)
    return parts["weights"] + parts["optimizer"] + parts["reference"]


if __name__ == "__main__":
    from dpo_dist.system.console import quiet_libraries
    from dpo_dist.system.processes import die_with_parent
    from dpo_dist.training.worker import end_process

    die_with_parent()  # torch's launcher puts it into its own session
    quiet_libraries()
    main(Block(**json.loads(sys.argv[1])))
    end_process(0)
