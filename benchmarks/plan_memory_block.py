"""One training of `benchmarks.plan_memory`, in its own processes.

Trains two steps on random tokens and prints, as JSON, the peak of live memory. It includes the
weights, and excludes the memory of the process before it loaded them. A first training of a small
model makes libraries allocate the memory that they keep. The allocator maps every larger tensor
separately (`MALLOC_MMAP_THRESHOLD_`), so that the resident pages are the live tensors.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PrinterCallback, TrainerCallback

from dpo_dist.config import Checkpointing, Full, Lora, Train
from dpo_dist.data.rows import write_parquet
from dpo_dist.system import ranks
from dpo_dist.system.console import quiet_libraries
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.reference import row_key
from dpo_dist.training.trainer import build_dpo_trainer

MethodName = Literal["lora", "full"]


@dataclass(frozen=True)
class Block:
    """The settings of a training: `pairs` per process and step, and their lengths in tokens."""

    model: str
    small_model: str
    out: str
    method: MethodName
    checkpointing: Checkpointing
    accelerate_config: str
    processes: int = 1
    pairs: int = 1
    prompt: int = 200
    completion: int = 400
    steps: int = 2

    @property
    def computed(self) -> int:
        return self.pairs * (self.prompt - 1 + 2 * self.completion)

    @property
    def scored(self) -> int:
        return self.pairs * 2 * self.completion


def rows(block: Block, vocabulary: int = 1000) -> Path:
    """Write pairs of random tokens, which take as much memory as real texts."""
    draw = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(block.steps * block.pairs * block.processes):
        prompt, chosen, rejected = (
            [draw.randrange(10, vocabulary) for _ in range(length)]
            for length in (block.prompt, block.completion, block.completion)
        )
        made.append(
            {
                "id": str(number),
                "row": row_key(prompt, chosen, rejected),
                "tokens": len(prompt) + len(chosen) + len(rejected),
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
            }
        )
    return write_parquet(Path(block.out) / "rows.parquet", made)


class NothingSaved(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Saves no checkpoint after the last step, because it would take memory."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = False


def run(block: Block) -> int:
    """Train, and return the peak of live bytes in this process.

    With several processes there is no first training, because DeepSpeed can start only once. Their
    figure includes the memory that libraries keep, and excludes the loading of the weights.
    """
    alone = block.processes == 1
    if alone:
        build(replace(block, model=block.small_model)).train()
        before = _settled()
    trainer = build(block)
    if not alone:
        before = _settled() - _weight_bytes(trainer.model)
    else:
        _settled()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    trainer.train()
    return _memory("VmHWM") - before


def build(block: Block) -> Any:
    """The trainer of a block; building it also computes the reference's log-probs."""
    batch = block.pairs * block.processes
    settings = Train(
        method=Lora() if block.method == "lora" else Full(),
        learning_rate=1e-6,
        global_batch_size=batch,
        micro_batch_size=block.pairs,
        max_length=block.prompt + block.completion,
        gradient_checkpointing=block.checkpointing,
        save_steps=1_000_000,
        accelerate_config=Path(block.accelerate_config),
    )
    job = TrainingJob(
        kind="dpo",
        settings=settings,
        shape=LaunchShape.read(settings.accelerate_file),
        model=block.model,
        dtype="bfloat16",
        rows=Path(block.out) / "rows.parquet",
        reference_folder=Path(block.out) / Path(block.model).name / "reference",
        planned_peak_bytes=dict.fromkeys(get_args(Checkpointing), 0),
        out=Path(block.out),
        seed=0,
        run_name="benchmark",
    )
    trainer = build_dpo_trainer(job)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(NothingSaved())
    return trainer


def _settled() -> int:
    """Resident bytes after free memory was returned to the kernel."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _memory("VmRSS")


def _weight_bytes(model: Any) -> int:
    """Bytes of the weights in this process; under ZeRO-3 of its shard."""
    tensors = [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status names no {name}")


if __name__ == "__main__":
    quiet_libraries()
    block = Block(**json.loads(sys.argv[1]))
    peak = run(block)
    if ranks.is_main():
        print(json.dumps({"peak_bytes": peak, "block": asdict(block)}))
