"""Step 7: decoder layers under `torch.compile`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor

from benchmarks.gpu_check.kernels import milliseconds
from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import (
    PackedBatch,
    Scale,
    Sizes,
    adapt_older_torch,
    make_model,
    pack,
    packed_hidden,
    random_pairs,
)


def blocks(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 7: layers compiled around attention and, on a GPU, with it; every micro-batch
    has another length."""
    if scale.on_gpu and (note := adapt_older_torch()):
        record.note(note)
    if not scale.on_gpu:
        record.note("on a CPU with the backend eager, which traces and generates no code")
    layers = 2 if scale.on_gpu else 1
    sizes = Sizes(**asdict(scale.model) | {"num_hidden_layers": layers})
    batches = [
        pack(random_pairs(scale, scale.micro_batches[-1], seed=seed), scale.device)
        for seed in range(4)
    ]
    eager = Blocks(scale, sizes, None)
    expected = [eager.run(batch) for batch in batches]
    eager_ms = eager.milliseconds(batches)
    record.figure("eager: ms, forward and backward", eager_ms)
    for way in ("around attention", *(["with attention"] if scale.on_gpu else [])):
        if record.seconds_left() < 30:
            record.note(f"no time left for blocks compiled {way}")
            continue
        compiled = Blocks(scale, sizes, way)
        started, graphs, difference = time.perf_counter(), [], 0.0
        for batch, exact in zip(batches, expected, strict=True):
            error = (compiled.run(batch) - exact).abs().max() / exact.abs().max()
            difference = max(difference, error.item())
            graphs.append(compiled.graphs())
        record.figure(f"compiled {way}: s to compile", time.perf_counter() - started)
        record.figure(f"compiled {way}: graphs", graphs[-1])
        record.check(
            f"compiled {way}: graphs added by the third and fourth length",
            graphs[-1] - graphs[1],
            most=0,
            why="lengths are dynamic; otherwise every micro-batch would compile again",
        )
        record.check(
            f"compiled {way}: relative difference of the final states",
            difference,
            most=5e-2,
            why="fused operations round to bfloat16 less often; two layers add few roundings",
        )
        took = compiled.milliseconds(batches)
        record.figure(f"compiled {way}: ms, forward and backward", took)
        record.figure(f"compiled {way}: times faster than eager", eager_ms / took)


class Blocks:
    """A model of few layers, which are compiled `around attention`, `with attention`, or not."""

    def __init__(self, scale: Scale, sizes: Sizes, way: str | None) -> None:
        from transformers import AttentionInterface

        from dpo_dist.training import attention

        self._scale = scale
        self._model = make_model(sizes, torch.float32, scale.device)
        if way is None:
            return
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if way == "around attention":
            # `make_model` registers the plain function again.
            apart = torch.compiler.disable(attention.packed_attention)
            AttentionInterface.register(attention.NAME, apart)
        for layer in self._model.model.layers:
            layer.compile(backend="inductor" if scale.on_gpu else "eager", dynamic=True)

    def run(self, batch: PackedBatch) -> Tensor:
        """Forward and backward; returns the final states."""
        with torch.autocast(self._scale.device, torch.bfloat16):
            states = packed_hidden(self._model, batch)
        states.float().square().mean().backward()
        self._model.zero_grad(set_to_none=True)
        return states.detach().float()

    def milliseconds(self, batches: list[PackedBatch]) -> float:
        """Of a batch, on average."""
        once = milliseconds(lambda: [self.run(batch) for batch in batches], self._scale)
        return once / len(batches)

    def graphs(self) -> int:
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
