"""LoRA operators for vLLM's CPU engine: one matrix product per adapter, not per token.

vLLM's CPU operators copy the adapter's weights for every token (about 20 MB per token and forward
pass at rank 16 on a 135M model), so the adapter costs several times as much as the model. They also
read the index -1 (a token without an adapter) as the last adapter. These operators multiply all
tokens of an adapter at once, and skip tokens without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def register() -> None:
    """Replace vLLM's operators by those below, in this process."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for module in (lora_ops, punica_cpu):
        for operator in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
            assert hasattr(module, operator.__name__)
            setattr(module, operator.__name__, operator)


def bgmv_shrink(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    scaling: float = 1.0,
) -> None:
    """output[t] = scaling * A[index[t]] @ inputs[t].

    inputs (T, in), weights (adapters, 1, rank, in), output (T, rank), indices (T,).
    """
    output_tensor.zero_()
    for adapter, rows in _groups(lora_indices_tensor):
        product = inputs[rows] @ _matrix(lora_b_weights, adapter).to(inputs.dtype).T
        output_tensor[rows, : product.shape[1]] = (scaling * product).to(output_tensor.dtype)


def bgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    add_inputs: bool = True,
) -> None:
    """output[t] += B[index[t]] @ inputs[t]; `=` instead of `+=` without `add_inputs`.

    inputs (T, rank), weights (adapters, 1, out, rank), output (T, >= out), indices (T,).
    """
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    weights = lora_b_weights[..., :width, :]
    bgmv_expand_slice(inputs, weights, output_tensor, lora_indices_tensor, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """`bgmv_expand` into the columns [slice_offset, slice_offset + slice_size)."""
    target = output_tensor[:, slice_offset : slice_offset + slice_size]
    if not add_inputs:
        target.zero_()
    for adapter, rows in _groups(lora_indices_tensor):
        weights = _matrix(lora_b_weights, adapter).to(target.dtype)
        target[rows] += inputs[rows].to(target.dtype) @ weights.T


def _groups(indices: Tensor) -> Iterator[tuple[int, Tensor | slice]]:
    """(adapter, the rows of its tokens); a slice if all tokens have the same adapter."""
    adapters = sorted(set(indices.tolist()))
    if len(adapters) == 1 and adapters[0] >= 0:
        yield adapters[0], slice(len(indices))
        return
    for adapter in adapters:
        if adapter >= 0:
            yield adapter, (indices == adapter).nonzero()[:, 0]


def _matrix(weights: Tensor, adapter: int) -> Tensor:
    """An adapter's weights as a matrix: some of vLLM's have an extra axis of length 1."""
    return weights[adapter].reshape(weights.shape[-2:])
