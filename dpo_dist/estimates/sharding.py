"""What a training process holds at most, part by part, in bytes: the one model of it, by which
`plan` recommends, preflight checks, and the trainer chooses its checkpointing.

P are all weights, T the trained ones, N the GPUs. The cases differ in what is really allocated:

- one GPU or DDP: the trainer's own mixed precision. All weights: 4P float32 and 2P autocast's
  copies; LoRA: 2P frozen bfloat16 and 4T. Gradients 4T, AdamW 8T; DDP also keeps its buckets, 4T.
  Without bf16 there are no copies, and LoRA's frozen weights take 4P.
- ZeRO (DeepSpeed, bf16): 2(P + T of LoRA) working weights; 4T master weights and 8T moments are
  sharded from stage 1, 4T gradients (added up in float32, the bfloat16 ones only pass through the
  bucket) from stage 2, the working weights from stage 3.
- ZeRO-3 with offload: weights, gradients and optimizer lie in the CPU's memory, a node's share.

Sources: Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), section 3 and table 1;
deepspeed/runtime/zero/config.py for the sizes of buckets.
"""

from __future__ import annotations

from typing import Literal

from dpo_dist.config import Checkpointing, Lora, Method
from dpo_dist.estimates.memory import (
    ModelShape,
    activation_bytes,
    head_bytes,
    trained_parameters,
)

Strategy = Literal["single_gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload"]
ZERO_STAGE: dict[Strategy, int] = {
    "single_gpu": 0,
    "ddp": 0,
    "zero1": 1,
    "zero2": 2,
    "zero3": 3,
    "zero3_offload": 3,
}
# DeepSpeed's defaults, in elements: what accelerate's YAML leaves alone.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000


def planned_peak(
    shape: ModelShape,
    method: Method,
    strategy: Strategy,
    processes: int,
    *,
    tokens: int,
    scored: int,
    checkpointing: Checkpointing,
    reference: int = 0,
    reference_size: Literal[2, 4] = 2,
    bf16: bool = True,
    on_cpu: bool = False,
) -> dict[str, int]:
    """Bytes by part for a micro-batch of `tokens` computed and `scored` predicted positions; the
    reference as in `model_states`."""
    trained = trained_parameters(shape, method)
    states = model_states(
        *(shape, method, strategy, processes),
        reference=reference,
        reference_size=reference_size,
        half=2 if bf16 else 4,
        # Of a bucket that is allocated whole, a CPU only holds the pages that are written.
        bucket=min(trained, REDUCE_BUCKET) if on_cpu else REDUCE_BUCKET,
    )
    return states | {
        "activations": activation_bytes(
            shape, method, tokens=tokens, bf16=bf16, checkpointing=checkpointing
        ),
        "head": head_bytes(shape, method, scored, bf16=bf16, on_cpu=on_cpu),
    }


def model_states(
    shape: ModelShape,
    method: Method,
    strategy: Strategy,
    processes: int,
    *,
    reference: int = 0,
    reference_size: Literal[2, 4] = 2,
    half: Literal[2, 4] = 2,
    accumulate: Literal[2, 4] = 4,
    bucket: int = REDUCE_BUCKET,
) -> dict[str, int]:
    """Bytes of one process, by part, before any batch.

    `reference` counts the weights of a second model that stays beside the policy, of
    `reference_size` bytes each (a live one is in float32; under ZeRO both work with the same).
    `half` is the size of a weight that is worked with (4 without bf16), `accumulate` that of an
    added-up gradient (`grad_accum_dtype`: 4 for fp32, 2 for bf16), `bucket` is in elements.
    """
    all_weights, trained = shape.parameters, trained_parameters(shape, method)
    working = all_weights + (trained if isinstance(method, Lora) else 0)
    stage = ZERO_STAGE[strategy]
    if stage == 0:
        copies = 2 * trained if half == 2 else 0  # autocast's
        beside_trained = half * all_weights if isinstance(method, Lora) else copies
        return {
            "weights": beside_trained + 4 * trained,
            "gradients": 4 * trained,
            "optimizer": 8 * trained,
            "communication": 4 * trained if strategy == "ddp" else 0,
            "reference": max(half, reference_size) * reference,
        }
    if strategy == "zero3_offload":
        weights = gradients = optimizer = beside = 0
    else:
        weights = half * working // (processes if stage == 3 else 1)
        gradients = accumulate * trained // (processes if stage >= 2 else 1)
        optimizer = 12 * trained // processes
        beside = half * reference // (processes if stage == 3 else 1)
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "communication": _buffers(working, trained, stage, half, bucket),
        "reference": beside,
    }


def host_bytes(shape: ModelShape, method: Method, processes: int, per_node: int) -> int:
    """Of a node's CPU memory, under ZeRO-3 with offload: working weights, master weights,
    moments and added-up gradients of its share."""
    trained = trained_parameters(shape, method)
    working = shape.parameters + (trained if isinstance(method, Lora) else 0)
    return (2 * working + (12 + 4) * trained) * per_node // processes


def _buffers(working: int, trained: int, stage: int, half: int, bucket: int) -> int:
    """DeepSpeed's: a bucket of gradients on their way, and under stage 3 the whole weights of the
    layers that are alive."""
    if stage == 1:
        return 4 * min(trained, bucket)  # float32; stages 2 and 3 allocate it whole
    return half * bucket + (half * min(working, MAX_LIVE_PARAMETERS) if stage == 3 else 0)
