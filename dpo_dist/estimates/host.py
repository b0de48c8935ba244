"""The CPU memory of a node with GPUs while its training loads, runs and saves, in bytes.

P is the number of weights, S that of a second model, T that of the trained weights. transformers
maps the files of the weights: in the files' dtype their pages are in the page cache, once per node,
and only in another dtype each process has a copy (`tests/numerics/test_host_memory.py`).

- Without sharded weights (one GPU, DDP, ZeRO-1 and 2, QLoRA) each process copies one tensor after
  the other from the mapped file to its GPU. Under ZeRO-3, rank 0 does so and the others receive
  their shards.
- ZeRO-3 with offload: a node holds its share of 2(P + S) bytes of bfloat16 weights, 12T of master
  weights and moments, and 4T of gradients.
- FSDP2: the first process of each node loads the model into CPU memory before it is sharded: in
  LoRA 2P, which are mapped; in full fine-tuning 4P and the second model.

Saving gathers all trained weights of a sharded model on rank 0. There, too, an adapter is merged in
float32, while the other processes wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpo_dist.config import Full, Lora, Method, is_quantized
from dpo_dist.estimates.memory import ModelShape, trained_parameters
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
    reference: int = 0,
    reference_size: Literal[2, 4] = 2,
    merges: bool = False,
) -> HostMemory:
    """The need of the node with rank 0. `reference` is the number of weights of a second model with
    `reference_size` bytes each, `merges` whether the adapter is merged at the end."""
    base = per_node * PROCESS_BYTES
    training = base
    if strategy == "zero3_offload":
        training += offloaded_bytes(shape, method, processes, per_node, reference)
    saved = 0
    if isinstance(method, Full) and ZERO_STAGE[strategy] == 3:
        saved = (4 if strategy == "fsdp2" else 2) * shape.parameters
    merged = 4 * shape.parameters if merges and isinstance(method, Lora) else 0
    mapped = 2 * shape.parameters
    loading = base + min(mapped, READ_BYTES)
    if strategy == "zero3_offload":
        loading += 2 * (shape.parameters + reference) * per_node // processes
    elif strategy == "fsdp2" and not is_quantized(method):
        copied = 4 * shape.parameters if isinstance(method, Full) else 0
        loading = base + mapped + copied + reference_size * reference
    return HostMemory(loading, training, max(training + saved, base + merged))


def offloaded_bytes(
    shape: ModelShape, method: Method, processes: int, per_node: int, reference: int = 0
) -> int:
    """A node's share of what ZeRO-3 with offload keeps in CPU memory."""
    trained = trained_parameters(shape, method)
    working = shape.parameters + (trained if isinstance(method, Lora) else 0) + reference
    return (2 * working + (12 + 4) * trained) * per_node // processes
