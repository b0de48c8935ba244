"""The CPU memory of a node with GPUs while its training loads, runs and saves, in bytes.

P is the number of weights, S that of a second model. With the weights in the dtype of their files,
transformers maps the files instead of copying them, so the processes of a node share one copy in
the page cache (`tests/numerics/test_host_memory.py`). In another dtype each process has its own.

- one GPU, DDP, ZeRO-1 and 2: every process loads the whole model before it moves to the GPU. LoRA's
  base and, under DeepSpeed, all weights are in bfloat16 as in their files: 2P, mapped once. Full
  fine-tuning without DeepSpeed loads float32: 4(P + S) in each process, in addition to the file.
- ZeRO-3: the shards are on the GPUs; rank 0 reads one tensor after the other from the mapped file.
- ZeRO-3 with offload: a node holds its share of 2W bfloat16 weights, 12T of master weights and
  moments, 4T of gradients, and 2S.
- FSDP2: the first process of each node loads the model, 2P (mapped) or, in full fine-tuning, 4P.
- QLoRA: each weight goes to the GPU as it is read, and is quantized there.

Saving gathers all trained weights of a sharded model on rank 0. Merging an adapter adds it in
float32, after the training's processes have ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_dist.config import Full, Lora, Method
from dpo_dist.estimates.memory import ModelShape, is_quantized, trained_parameters
from dpo_dist.estimates.sharding import ZERO_STAGE, Strategy
from dpo_dist.system.machine import GIB

# Assumed for each process: Python, torch, the host's side of CUDA and NCCL, and the rows.
PROCESS_BYTES = 4 * GIB
# The most of a mapped file that a process needs at a time where it reads tensor after tensor.
READ_BYTES = 5 * 10**9


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one node's CPU memory at the peaks of loading, training and saving."""

    loading: int
    training: int
    saving: int

    @property
    def peak(self) -> int:
        return max(self.loading, self.training, self.saving)


def host_memory(
    shape: ModelShape,
    method: Method,
    strategy: Strategy,
    processes: int,
    per_node: int,
    *,
    second_model: int = 0,
    merges: bool = False,
) -> HostMemory:
    """The need of the node with rank 0. `second_model` is the number of weights of a second model,
    `merges` whether the adapter is merged at the end (`train.merge`)."""
    base = per_node * PROCESS_BYTES
    training = base
    if strategy == "zero3_offload":
        training += offloaded_bytes(shape, method, processes, per_node, second_model)
    saved = 0
    if isinstance(method, Full) and ZERO_STAGE[strategy] == 3:
        saved = (4 if strategy == "fsdp2" else 2) * shape.parameters
    merged = 4 * shape.parameters + PROCESS_BYTES if merges and isinstance(method, Lora) else 0
    loading = base + _loaded(shape, method, strategy, processes, per_node, second_model)
    return HostMemory(loading, training, max(training + saved, merged))


def offloaded_bytes(
    shape: ModelShape, method: Method, processes: int, per_node: int, second_model: int = 0
) -> int:
    """A node's share of what ZeRO-3 with offload keeps in CPU memory."""
    trained = trained_parameters(shape, method)
    working = shape.parameters + (trained if isinstance(method, Lora) else 0) + second_model
    return (2 * working + (12 + 4) * trained) * per_node // processes


def _loaded(
    shape: ModelShape,
    method: Method,
    strategy: Strategy,
    processes: int,
    per_node: int,
    second: int,
) -> int:
    """Bytes of weights in a node's CPU memory at the peak of loading."""
    stage, weights = ZERO_STAGE[strategy], shape.parameters
    mapped = 2 * weights
    if is_quantized(method) or strategy == "zero3":
        return min(mapped, READ_BYTES)
    if strategy == "zero3_offload":
        return 2 * (weights + second) * per_node // processes + min(mapped, READ_BYTES)
    if isinstance(method, Lora) or stage in (1, 2):
        return mapped
    copies = 1 if strategy == "fsdp2" else per_node
    return mapped + copies * 4 * (weights + second)
