"""How much arithmetic DPO, SFT and sampling take, and how long that is on a GPU.

The counts are those of docs/scaling.md: a product of n by m by k takes 2nmk operations, prompts
are computed once, and only completions pass through the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_dist.config import Checkpointing, Lora, Method
from dpo_dist.estimates.hardware import RUNTIME_BYTES, GpuSpec
from dpo_dist.estimates.memory import ModelShape, trained_parameters

# Where nothing was measured. The share of a GPU's peak that training's arithmetic reaches, what
# is computed twice included; that of reading prompts; and the share of its memory bandwidth that
# decoding reaches.
TRAINING_UTILIZATION = 0.35
PREFILL_UTILIZATION = 0.5
DECODING_UTILIZATION = 0.5
# Seconds that an engine's step and a layer's forward take at least, however little there is to
# compute: scheduling, and launching the kernels one after the other.
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
        """Positions of the packed row; the prompt's last token opens both branches."""
        return self.prompt - 1 + self.scored

    @property
    def scored(self) -> float:
        """Positions that predict a token of a completion."""
        return self.chosen + self.rejected

    @property
    def attended(self) -> float:
        """Pairs of a query and a key."""
        branches = (self.chosen, self.rejected)
        return self.prompt**2 / 2 + sum(n * (self.prompt + n / 2) for n in branches)


@dataclass(frozen=True)
class Forward:
    """Floating-point operations of a forward: by the layers' weights, in attention, in the head."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head

    def times(self, count: float) -> Forward:
        return Forward(self.layers * count, self.attention * count, self.head * count)


def forward(shape: ModelShape, pair: Pair) -> Forward:
    """A forward of one pair, in floating-point operations."""
    return Forward(
        layers=2.0 * shape.body_parameters * pair.computed,
        attention=4.0 * shape.heads * shape.head_dim * shape.layers * pair.attended,
        head=2.0 * shape.vocabulary * shape.hidden * pair.scored,
    )


def training_flops(
    shape: ModelShape, method: Method, pair: Pair, checkpointing: Checkpointing = "none"
) -> float:
    """Forward and backward of one pair, the reference left out.

    LoRA needs no gradient by the frozen weights. Full checkpointing computes the layers twice;
    what selective checkpointing repeats is not counted.
    """
    once = forward(shape, pair)
    again = once.layers + once.attention if checkpointing == "full" else 0.0
    if isinstance(method, Lora):
        adapters = 6.0 * trained_parameters(shape, method) * pair.computed
        return 2 * once.layers + 3 * once.attention + 2 * once.head + adapters + again
    return 3 * once.total + again


def kv_bytes(shape: ModelShape) -> int:
    """The KV cache of a token, bfloat16: 4 bytes a layer and unit of the key heads."""
    return 4 * shape.layers * shape.key_heads * shape.head_dim


def concurrent_answers(
    shape: ModelShape, gpu: GpuSpec, context: float, *, memory_share: float = 0.9, split: int = 1
) -> float:
    """How many sequences of `context` tokens the KV cache holds beside the weights, on `split`
    GPUs that share one model. At most 0: the weights do not fit."""
    room = split * (memory_share * gpu.memory - RUNTIME_BYTES) - weights(shape)
    return room / (kv_bytes(shape) * context)


def decoding_rate(
    shape: ModelShape, gpu: GpuSpec, context: float, concurrent: float, *, split: int = 1
) -> float:
    """Tokens per second that `split` GPUs write together, `concurrent` sequences at a time of
    `context` tokens in the mean: the slower of reading weights and cache once a step, and of the
    step's arithmetic."""
    read = weights(shape) + concurrent * kv_bytes(shape) * context
    reading = read / (split * gpu.bandwidth * DECODING_UTILIZATION)
    head = shape.vocabulary * shape.hidden
    computing = concurrent * 2.0 * (shape.body_parameters + head) / (split * gpu.flops)
    return concurrent / max(reading, computing / PREFILL_UTILIZATION, ENGINE_STEP)


def prefill_seconds(shape: ModelShape, gpu: GpuSpec, tokens: float) -> float:
    """GPU seconds to read prompts of `tokens` in all."""
    return 2.0 * shape.body_parameters * tokens / (gpu.flops * PREFILL_UTILIZATION)


def weights(shape: ModelShape) -> int:
    """Bytes of the bfloat16 weights."""
    return 2 * shape.parameters
