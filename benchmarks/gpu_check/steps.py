"""Steps 4 and 5: the training step of a 1.5B model, without a trainer around it.

Packed forward, LM head, DPO loss, backward, clipping and AdamW, from our own modules. TRL is not
needed, and its costs are not included; step 6 has them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.kernels import milliseconds
from benchmarks.gpu_check.profiles import count_waits, kernels_and_idle
from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import (
    PackedBatch,
    Pair,
    Scale,
    Sizes,
    adapt_older_torch,
    add_lora,
    installed,
    make_model,
    pack,
    packed_log_probs,
    random_pairs,
)
from dpo_dist.training import CausalLM

BETA = 0.1
METHODS = ("LoRA", "full FT")
GIB = 2**30


class DpoStep:
    """One optimizer step on one micro-batch. The learning rate is 0: every step has the same loss,
    so that kinds of checkpointing can be compared."""

    def __init__(self, model: CausalLM, scale: Scale) -> None:
        self.model, self._scale = model, scale
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=0.0, fused=True)

    def log_probs(self, batch: PackedBatch) -> Tensor:
        with torch.autocast(self._scale.device, torch.bfloat16):
            return packed_log_probs(self.model, batch)

    def __call__(self, batch: PackedBatch, reference: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the norm of the gradient, on the device."""
        chosen, rejected = self.log_probs(batch) - reference
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm


def build(method: str, scale: Scale, sizes: Sizes | None = None) -> DpoStep:
    """LoRA over bfloat16 weights, or all weights in float32, as the trainer loads them."""
    if method == "LoRA":
        model = make_model(sizes or scale.model, torch.bfloat16, scale.device)
        return DpoStep(add_lora(model), scale)
    return DpoStep(make_model(sizes or scale.model, torch.float32, scale.device), scale)


def checkpointings(model: CausalLM, record: Recorder) -> Iterator[str]:
    """Enables each kind of checkpointing in turn; `selective` comes last, because it replaces the
    model's method that enables it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    yield "none"
    base.gradient_checkpointing_enable({"use_reentrant": False})
    yield "full"
    base.gradient_checkpointing_disable()
    try:
        from dpo_dist.training import lora_linear  # noqa: F401  # its operator is named there
        from dpo_dist.training.activations import checkpoint_selectively
    except ModuleNotFoundError as error:
        record.note(f"{error.name} is not installed: selective checkpointing is not measured")
        return

    checkpoint_selectively(model)
    yield "selective"


def speed(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 4."""
    if scale.on_gpu and (note := adapt_older_torch()):
        record.note(note)
    plans = _plans(record)
    if scale.on_gpu:
        record.figure("bf16 GEMM, TFLOP/s", _gemm(scale) / 1e12)
    half = record.seconds_left() / 2

    def measure(method: str) -> None:
        _measure(method, record, scale, plans, reserve=half if method == METHODS[0] else 0)

    _each_method(record, measure)


def _each_method(record: Recorder, measure: Callable[[str], None]) -> None:
    """Measure the methods whose packages are installed. `ModuleNotFoundError` if there is none."""
    missing = []
    for method in METHODS:
        try:
            measure(method)
        except ModuleNotFoundError as error:
            missing.append(error)
            record.note(f"{error.name} is not installed: {method} is not measured")
        gc.collect()
        torch.cuda.empty_cache()
    if len(missing) == len(METHODS):
        raise missing[0]


def _measure(method: str, record: Recorder, scale: Scale, plans: Any, reserve: float) -> None:
    """Every micro-batch with every kind of checkpointing, as long as `reserve` seconds are left."""
    step = build(method, scale)
    known: dict[int, float] = {}  # norms of gradients by micro-batch
    for kind in checkpointings(step.model, record):
        for size in scale.micro_batches:
            name = f"{method}, {kind}, {size} pairs"
            if record.seconds_left() < reserve + 5:
                record.note(f"no time left for {name}")
                continue
            pairs = random_pairs(scale, size)
            batch = pack(pairs, scale.device)
            norm = None
            try:
                norm = _one(step, name, batch, pairs, record, scale, plans, (method, kind))
            except torch.OutOfMemoryError:
                record.note(f"{name}: out of memory")
            if norm is None:
                gc.collect()
                torch.cuda.empty_cache()
                continue
            first = known.setdefault(size, norm)
            if size == scale.micro_batches[0] and (scale.on_gpu or kind == "none"):
                _profile(step, name, batch, record, scale)
            if kind != "none":
                record.check(
                    f"{name}: gradient's norm, relative difference",
                    abs(norm - first) / first,
                    most=2e-2,
                    why="recomputation repeats the same operations; atomic additions may differ",
                )


def _one(
    step: DpoStep, name: str, batch: PackedBatch, pairs: list[Pair], record: Recorder, scale: Scale,
    plans: Any, kind: tuple[str, str],
) -> float:  # fmt: skip
    """Time and peak memory of a step; returns the norm of its gradient."""
    with torch.no_grad():
        reference = step.log_probs(batch)
    loss, norm = (x.item() for x in step(batch, reference))  # not timed: allocates AdamW's states
    if scale.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    took = milliseconds(lambda: step(batch, reference), scale, scale.repeats)
    record.figure(f"{name}: ms", took)
    record.figure(f"{name}: tokens/s", 1e3 * batch.tokens / took)
    record.check(
        f"{name}: |loss - ln 2|",
        abs(loss - math.log(2)),
        most=1e-2,
        why="policy and reference are equal, and differ by rounding at most",
    )
    if scale.on_gpu:
        record.figure(f"{name}: peak GiB", torch.cuda.max_memory_allocated() / GIB)
    if plans is not None:
        plans.report(name, record, scale, took, batch, pairs, *kind)
    return norm


def _plans(record: Recorder) -> Any:
    """The module that compares with the plan, or None without its packages."""
    try:
        from benchmarks.gpu_check import plans
    except ModuleNotFoundError as error:
        record.note(f"{error.name} is not installed: no MFU, and no comparison with the plan")
        return None
    return plans


def _profile(step: DpoStep, name: str, batch: PackedBatch, record: Recorder, scale: Scale) -> None:
    with torch.no_grad():
        reference = step.log_probs(batch)
    count, idle = kernels_and_idle(lambda: step(batch, reference), scale)
    record.figure(f"{name}: {'kernels' if scale.on_gpu else 'operators'} of a step", count)
    if idle is not None:
        record.figure(f"{name}: share of a step in which the GPU is idle", idle)


def _gemm(scale: Scale, size: int = 8192) -> float:
    """FLOP/s of a large matrix product of random bfloat16 numbers."""
    a, b = (torch.randn(size, size, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / (milliseconds(lambda: a @ b, scale, 10) / 1e3)


def synchronisations(record: Recorder, scale: Scale, folder: Path) -> None:
    """Step 5: the places where the host waits for the device, in one step."""
    if scale.on_gpu and (note := adapt_older_torch()):
        record.note(note)
    else:
        record.note("on a CPU operators are counted that would wait for a GPU")
    sizes = Sizes(**asdict(scale.model) | {"num_hidden_layers": 2})  # the number is that of all

    def measure(method: str) -> None:
        step = build(method, scale, sizes)
        batch = pack(random_pairs(scale, scale.micro_batches[0]), scale.device)
        with torch.no_grad():
            reference = step.log_probs(batch)
        step(batch, reference)
        with count_waits(scale) as places:
            step(batch, reference)
        record.check(
            f"{method}, without a trainer: waits in a step",
            sum(places.values()),
            most=0,
            why="packed rows, our head and AdamW need no value on the host",
        )
        for place, count in places.most_common():
            record.note(f"{method}, without a trainer: {count} x {place}")

    _each_method(record, measure)
    if not installed("trl"):
        record.note("TRL is not installed: the trainer's step is not measured")
        return
    from benchmarks.gpu_check.trainers import waits_of_trainer

    places = waits_of_trainer(scale, folder)
    record.check(
        "the trainer: waits in a step",
        sum(places.values()),
        most=32,
        why="21 were found by reading TRL's step and ours; the clipping, the log and the loop add "
        "some. More means that a change added one for every row or layer",
    )
    for place, count in places.most_common(24):
        record.note(f"the trainer: {count} x {place}")
