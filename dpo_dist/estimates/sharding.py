"""The planned peak memory of a training process by part, in bytes. `plan` uses it to recommend a
setting, preflight to check the free memory, and the trainer to choose its checkpointing.

P is the number of weights, T the number of trained weights. The allocations in bytes are:

- one GPU or DDP (the trainer's own mixed precision): full fine-tuning 4P for float32 weights and 2P
  for autocast's copies; LoRA 2P for frozen bfloat16 weights and 4T for the adapter. Gradients take
  4T, AdamW's states 8T, and DDP's buckets 4T. Without bf16 there are no copies, and LoRA's frozen
  weights take 4P.
- ZeRO (DeepSpeed, bf16): 2P for working weights (LoRA: 2P + 2T), sharded in stage 3; 4T for master
  weights and 8T for AdamW's states, sharded from stage 1 on; 4T for gradients, sharded from stage 2
  on. Gradients are accumulated in float32; bfloat16 gradients only pass through the bucket.
- ZeRO-3 with offload: weights, gradients and optimizer states are in CPU memory, and each node has
  its share (host.py).
- FSDP2: trained weights in float32, frozen ones in bfloat16, gradients 4T and AdamW's states 8T,
  all sharded; two units (a layer, the embedding or the head) are gathered at a time, and one has
  gradients in bfloat16 and float32 that are not reduced yet.
- QLoRA: 4 bits per weight of the linear layers and 0.13 bits of scales, and the largest of their
  matrices in bfloat16 while it is used. Scales are never sharded, and transformers loads a
  quantized model whole before ZeRO-3 or FSDP2 shard it (`loading_bytes`).

Sources: Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), section 3 and table 1;
deepspeed/runtime/zero/config.py for the sizes of buckets.
"""

from __future__ import annotations

from typing import Literal

from dpo_dist import buckets
from dpo_dist.config import Checkpointing, Lora, Method, is_quantized
from dpo_dist.estimates.memory import (
    NF4_SCALES,
    NF4_WEIGHT,
    ModelShape,
    activation_bytes,
    head_bytes,
    trained_parameters,
)

MemoryPart = Literal[
    "weights", "gradients", "optimizer", "communication", "reference", "activations", "head"
]
Strategy = Literal["single_gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
# DeepSpeed's stage; FSDP2 shards what stage 3 shards.
ZERO_STAGE: dict[Strategy, int] = {
    "single_gpu": 0,
    "ddp": 0,
    "zero1": 1,
    "zero2": 2,
    "zero3": 3,
    "zero3_offload": 3,
    "fsdp2": 3,
}


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
) -> dict[MemoryPart, int]:
    """Bytes by part, for a micro-batch of `tokens` computed and `scored` predicted positions. For
    `reference` and `reference_size`, see `model_states`."""
    states = model_states(
        shape,
        method,
        strategy,
        processes,
        reference=reference,
        reference_size=reference_size,
        half=2 if bf16 else 4,
        on_cpu=on_cpu,
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
    on_cpu: bool = False,
) -> dict[MemoryPart, int]:
    """Bytes of one process by part, without any batch.

    `reference` is the number of weights of a second model that is in memory in addition to the
    policy; each takes `reference_size` bytes (4 for a live reference, which is in float32; under
    ZeRO both models have the same precision). `half` is the bytes per working weight (4 without
    bf16), `accumulate` the bytes per accumulated gradient (`grad_accum_dtype`: 4 for fp32, 2 for
    bf16).
    """
    trained = trained_parameters(shape, method)
    stage = ZERO_STAGE[strategy]
    if stage == 0:
        copies = 2 * trained if half == 2 else 0  # by autocast
        frozen = _frozen_bytes(shape, method, half)
        return {
            "weights": (frozen or copies) + 4 * trained,
            "gradients": 4 * trained,
            "optimizer": 8 * trained,
            "communication": 4 * trained if strategy == "ddp" else 0,
            "reference": max(half, reference_size) * reference,
        }
    if strategy == "fsdp2":
        return _fsdp2_states(shape, method, processes, reference * reference_size, half)
    working = _frozen_bytes(shape, method, half, processes if stage == 3 else 1)
    working += half * trained // (processes if stage == 3 else 1)
    gradients = accumulate * trained // (processes if stage >= 2 else 1)
    optimizer = 12 * trained // processes
    beside = half * reference // (processes if stage == 3 else 1)
    bucket = bucket_elements(shape, method, stage)
    if on_cpu:  # where only written pages take memory
        bucket = min(bucket, trained)
    count = shape.parameters + (trained if isinstance(method, Lora) else 0)
    kept = buckets.gathered(count) if stage == 3 else 0
    if strategy == "zero3_offload":
        working = gradients = optimizer = beside = 0
    return {
        "weights": working,
        "gradients": gradients,
        "optimizer": optimizer,
        "communication": 4 * bucket if stage == 1 else half * (bucket + kept),
        "reference": beside,
    }


def loading_bytes(shape: ModelShape, method: Method, strategy: Strategy, processes: int) -> int:
    """Bytes of one process's device while it loads the weights. A quantized model is quantized on
    the device and is whole there until ZeRO-3 or FSDP2 shard it: transformers leaves out
    `zero.Init` and the meta device for it."""
    if is_quantized(method):
        return _frozen_bytes(shape, method, 2) + 4 * trained_parameters(shape, method)
    return model_states(shape, method, strategy, processes)["weights"]


def _fsdp2_states(
    shape: ModelShape, method: Method, processes: int, reference_bytes: int, half: int
) -> dict[MemoryPart, int]:
    trained = trained_parameters(shape, method)
    unit = max(shape.body_parameters // shape.layers, shape.vocabulary * shape.hidden)
    held = unit
    if isinstance(method, Lora):
        held = trained // shape.layers
    weights = _frozen_bytes(shape, method, half, processes) + 4 * trained // processes
    return {
        "weights": weights,
        "gradients": 4 * trained // processes,
        "optimizer": 8 * trained // processes,
        "communication": 2 * half * unit + (half + 4) * held,
        "reference": reference_bytes // processes,
    }


def bucket_elements(shape: ModelShape, method: Method, stage: int) -> int:
    """The elements of DeepSpeed's buckets of gradients. ZeRO-2 has two, one to be filled while the
    other one is reduced, and each can hold the largest weight, the embedding."""
    largest = 0 if isinstance(method, Lora) else shape.vocabulary * shape.hidden
    size = buckets.bucket(stage, trained_parameters(shape, method), largest)
    return 2 * size if stage == 2 else size


def _frozen_bytes(shape: ModelShape, method: Method, half: int, shards: int = 1) -> int:
    """Bytes of LoRA's frozen weights on one device, sharded among `shards`; 0 in full fine-tuning.
    In 4 bits, the scales are not sharded, and a matrix that is used is in bfloat16."""
    if not isinstance(method, Lora):
        return 0
    if method.quantization is None:
        return half * shape.parameters // shards
    body = shape.body_parameters
    packed = round(NF4_WEIGHT * body) + half * (shape.parameters - body)
    used = half * max(a * b for a, b in shape.linear)
    return packed // shards + round(NF4_SCALES * body) + used
