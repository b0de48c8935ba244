"""A measured step against the plan: memory, and arithmetic against the GPU's peak."""

from __future__ import annotations

from typing import Literal, cast

import torch

from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import PackedBatch, Pair, Scale
from dpo_dist.config import Checkpointing, Full, Lora
from dpo_dist.estimates import throughput
from dpo_dist.estimates.hardware import read_gpus
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.sharding import planned_peak
from dpo_dist.training.job import MEMORY_SHARE

GIB = 2**30
FORMS = {"PCIE", "NVL"}  # the others are SXM


def report(
    name: str, record: Recorder, scale: Scale, milliseconds: float, batch: PackedBatch,
    pairs: list[Pair], method: Literal["full FT", "LoRA"], kind: str,
) -> None:  # fmt: skip
    """MFU and peak memory of a step."""
    shape, settings = shape_of(scale), Lora() if method == "LoRA" else Full()
    planned = planned_peak(
        shape,
        settings,
        "single_gpu",
        1,
        tokens=batch.tokens,
        scored=batch.scored,
        checkpointing=cast(Checkpointing, kind),
        on_cpu=not scale.on_gpu,
    )
    lengths = [
        throughput.Pair(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs
    ]
    flops = sum(throughput.training_flops(shape, settings, length) for length in lengths)
    rate = 1e3 * flops / milliseconds
    memory = torch.cuda.get_device_properties(0).total_memory if scale.on_gpu else 0
    gpu = known_gpu(scale.device_name(), memory)
    if gpu is not None:
        record.figure(f"{name}: MFU", rate / read_gpus()[gpu].flops)
    else:
        record.figure(f"{name}: useful GFLOP/s", rate / 1e9)
    record.figure(f"{name}: planned GiB", sum(planned.values()) / GIB)
    if scale.on_gpu:
        record.check(
            f"{name}: peak memory / planned",
            torch.cuda.max_memory_allocated() / sum(planned.values()),
            most=1 / MEMORY_SHARE,
            why=f"`auto` plans to fill {MEMORY_SHARE:.0%} of the free memory",
        )


def shape_of(scale: Scale) -> ModelShape:
    sizes = scale.model
    return ModelShape(
        layers=sizes.num_hidden_layers,
        hidden=sizes.hidden_size,
        heads=sizes.num_attention_heads,
        key_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        ffn=sizes.intermediate_size,
        vocabulary=sizes.vocab_size,
        tied=sizes.tie_word_embeddings,
    )


def known_gpu(name: str, memory: int) -> str | None:
    """The name in gpus.toml of a GPU with CUDA's name and that many bytes: of those with its name
    and form, the one whose memory is closest."""
    words = set(name.upper().replace("-", " ").split())
    gpus = read_gpus()
    named = []
    for known in gpus:
        model, *form = known.upper().split("-")
        if model in words and words & FORMS == set(form) & FORMS:
            named.append(known)
    return min(named, key=lambda known: abs(gpus[known].memory - memory), default=None)
