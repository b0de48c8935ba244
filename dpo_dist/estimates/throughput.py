"""The number of operations of DPO, SFT and sampling, and the time that a GPU takes for them.

The counts are those of docs/scaling.md: the product of an n x m and an m x k matrix takes 2nmk
operations, each prompt is computed once, and only completions pass through the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_dist.config import Checkpointing, Lora, Method
from dpo_dist.estimates.hardware import RUNTIME_BYTES, GpuSpec
from dpo_dist.estimates.memory import ModelShape, trains_head

# Assumed if nothing was measured: the share of a GPU's peak that training reaches (including
# operations that checkpointing repeats), the share of it that prefill reaches, and the share of the
# memory bandwidth that decoding reaches.
TRAINING_UTILIZATION = 0.35
PREFILL_UTILIZATION = 0.5
DECODING_UTILIZATION = 0.5
# The minimum seconds of an engine's step (scheduling), and of a layer's forward pass (launching its
# kernels one after the other).
ENGINE_STEP = 5e-3
LAYER_LAUNCH = 3e-4


@dataclass(frozen=True)
class Pair:
    """A preference pair in tokens: the prompt, and two completions that follow it."""

    prompt: float
    chosen: float
    rejected: float

    @property
    def computed(self) -> float:
        """Positions of the packed row; both completions begin at the prompt's last token."""
        return self.prompt - 1 + self.scored

    @property
    def scored(self) -> float:
        """Positions that predict a token of a completion."""
        return self.chosen + self.rejected

    @property
    def attended(self) -> float:
        """Query-key pairs."""
        branches = (self.chosen, self.rejected)
        return self.prompt**2 / 2 + sum(n * (self.prompt + n / 2) for n in branches)


@dataclass(frozen=True)
class Forward:
    """Operations of a forward pass: in the layers' linear modules, in attention, in the head."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head

    def times(self, count: float) -> Forward:
        return Forward(self.layers * count, self.attention * count, self.head * count)


def forward(shape: ModelShape, pair: Pair) -> Forward:
    """The floating-point operations of a forward pass of one pair."""
    return Forward(
        layers=2.0 * shape.body_parameters * pair.computed,
        attention=4.0 * shape.heads * shape.head_dim * shape.layers * pair.attended,
        head=2.0 * shape.vocabulary * shape.hidden * pair.scored,
    )


def training_flops(
    shape: ModelShape, method: Method, pair: Pair, checkpointing: Checkpointing = "none"
) -> float:
    """Floating-point operations of one pair's forward and backward pass, without the reference.

    LoRA computes no gradients of the frozen weights. Full checkpointing computes the layers twice;
    the few operations that selective checkpointing repeats are not counted.
    """
    once = forward(shape, pair)
    again = once.layers + once.attention if checkpointing == "full" else 0.0
    if isinstance(method, Lora):
        adapters = 6.0 * shape.lora_parameters(method) * pair.computed
        head = (3 if trains_head(method) else 2) * once.head
        return 2 * once.layers + 3 * once.attention + head + adapters + again
    return 3 * once.total + again


def flops_per_token(shape: ModelShape, method: Method, mean: Pair) -> float:
    """`training_flops` per token of pairs with these `mean` lengths, each prompt counted once."""
    return training_flops(shape, method, mean) / (mean.prompt + mean.scored)


def kv_bytes(shape: ModelShape) -> int:
    """Bytes of KV cache per token in bfloat16: 4 per layer and dimension of the key heads."""
    return 4 * shape.layers * shape.key_heads * shape.head_dim


def concurrent_answers(
    shape: ModelShape, gpu: GpuSpec, context: float, *, memory_share: float = 0.9, split: int = 1
) -> float:
    """The number of sequences of `context` tokens that the KV cache can hold in addition to the
    weights, on `split` GPUs that share one model. Not above 0 if the weights do not fit."""
    room = split * (memory_share * gpu.memory - RUNTIME_BYTES) - weights(shape)
    return room / (kv_bytes(shape) * context)


def decoding_rate(
    shape: ModelShape, gpu: GpuSpec, context: float, concurrent: float, *, split: int = 1
) -> float:
    """Tokens per second that `split` GPUs generate together, for `concurrent` sequences with
    `context` tokens on average. A step reads the weights and the cache once; its time is the
    longest of that, its computation and `ENGINE_STEP`."""
    read = weights(shape) + concurrent * kv_bytes(shape) * context
    reading = read / (split * gpu.bandwidth * DECODING_UTILIZATION)
    head = shape.vocabulary * shape.hidden
    computing = concurrent * 2.0 * (shape.body_parameters + head) / (split * gpu.flops)
    return concurrent / max(reading, computing / PREFILL_UTILIZATION, ENGINE_STEP)


def prefill_seconds(shape: ModelShape, gpu: GpuSpec, tokens: float) -> float:
    """GPU seconds to prefill prompts with `tokens` tokens in total."""
    return 2.0 * shape.body_parameters * tokens / (gpu.flops * PREFILL_UTILIZATION)


def weights(shape: ModelShape) -> int:
    """Bytes of the bfloat16 weights."""
    return 2 * shape.parameters
