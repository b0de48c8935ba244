"""Compares the planned memory of a training with the measured memory, on this machine's CPU.

    python -m benchmarks.plan_memory [--quick] [--model FOLDER] [--only WORDS] [--json FILE]

The model is a random Llama with 50 M weights and SmolLM2's tokenizer, unless `--model` names
another. Each line is a training of two steps in separate processes
(benchmarks/plan_memory_block.py): LoRA and full fine-tuning with every kind of checkpointing in one
process in bfloat16, and with ZeRO-2 and ZeRO-3 on two processes in float32. The plan is
`estimates.sharding.planned_peak`, which `dpo-dist plan`, preflight and the trainer also use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import MODEL, option_parser, publish
from benchmarks.plan_memory_block import Block, MethodName, rows
from dpo_dist.config import Checkpointing, Full, Lora
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import MemoryPart, planned_peak
from dpo_dist.runs.resources import model_shape, strategy
from dpo_dist.training.launch_shape import LaunchShape

CONFIGS = Path("accelerate_configs")
# Tensors of 128 KiB and more are allocated by the kernel, and returned to it when they are freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", default="", help="only lines whose name contains this")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = random_model(Path(folder) / "small", layers=2, hidden=64)
        model = str(options.model or random_model(Path(folder) / "model", layers=8, hidden=512))
        shape = model_shape(model, False)
        for number, (name, block) in enumerate(blocks(model, str(small), Path(folder))):
            if options.only in name and (number == 0 or not options.quick):
                figures |= compare(name, block, shape)
    publish(figures, options.json)


def random_model(
    folder: Path, *, layers: int, hidden: int, half: bool = False, vocabulary: int | None = None
) -> Path:
    """A model that trains in seconds and needs more memory than the rest of the process; `half`: in
    bfloat16."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=vocabulary or len(tokenizer),
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    (model.bfloat16() if half else model).save_pretrained(folder)
    return folder


def blocks(model: str, small: str, folder: Path) -> Iterator[tuple[str, Block]]:
    """(name, training)"""
    methods: tuple[MethodName, ...] = ("lora", "full")
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    for method in methods:
        for checkpointing in kinds:
            name = f"{method}, {checkpointing} checkpointing"
            out = str(folder / f"{method}-{checkpointing}")
            yield name, Block(model, small, out, method, checkpointing, str(CONFIGS / "cpu.yaml"))
    for stage in (2, 3):
        for method in methods:
            name = f"{method}, ZeRO-{stage} on 2 processes"
            out, config = str(folder / f"{method}-zero{stage}"), f"cpu_zero{stage}.yaml"
            yield name, Block(model, small, out, method, "none", str(CONFIGS / config), processes=2)


def compare(name: str, block: Block, shape: ModelShape) -> dict[str, float]:
    """The planned and the measured GiB, and their ratio."""
    parts = planned(block, shape)
    expected, found = sum(parts.values()) / 2**30, measured(block) / 2**30
    shown = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in parts.items() if size)
    print(f"{name}: planned {expected:.2f} ({shown}), measured {found:.2f}", flush=True)
    return {
        f"{name}: planned GiB": expected,
        f"{name}: measured GiB": found,
        f"{name}: planned / measured": expected / found,
    }


def planned(block: Block, shape: ModelShape) -> dict[MemoryPart, int]:
    """Planned bytes by part."""
    method = Lora() if block.method == "lora" else Full()
    return planned_peak(
        shape,
        method,
        strategy(LaunchShape.read(Path(block.accelerate_config))),
        block.processes,
        tokens=block.computed,
        scored=block.scored,
        checkpointing=block.checkpointing,
        bf16=block.processes == 1,
        on_cpu=True,
    )


def measured(block: Block) -> int:
    """Peak bytes of the main process."""
    rows(block)
    words = [sys.executable]
    if block.processes > 1:
        launcher = ("-m", "dpo_dist.training.launcher", "--config_file", block.accelerate_config)
        words += launcher
    words += ["-m", "benchmarks.plan_memory_block", json.dumps(asdict(block))]
    # Several threads would mostly wait for each other on a busy machine.
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines()[::-1] if line.startswith('{"peak'))
    peak: int = json.loads(line)["peak_bytes"]
    return peak


if __name__ == "__main__":
    main()
