"""LoRA on vLLM's CPU engine, an adapter at a time instead of a token at a time.

vLLM's CPU operators gather a copy of the adapter's weights for every token (about 20 MB a token
and forward pass at rank 16 on a 135M model), which makes an adapter several times as expensive
as the model under it. They also read the index -1, a token without an adapter, as the last
adapter. Here the tokens of one adapter are multiplied together, and a token without one is left
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def register() -> None:
    """Put the operators below in the place of vLLM's, in this process."""
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
    """output[t] += B[index[t]] @ inputs[t]; without `add_inputs`, = instead of +=.

    inputs (T, rank), weights (adapters, 1, out, rank), output (T, >= out), indices (T,).
    """
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    bgmv_expand_slice(
        inputs,
        lora_b_weights[..., :width, :],
        output_tensor,
        lora_indices_tensor,
        0,
        width,
        add_inputs,
    )


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
    """(adapter, the rows of its tokens); all rows as a slice when one adapter has them all."""
    adapters = sorted(set(indices.tolist()))
    for adapter in adapters:
        if adapter >= 0:
            rows = (
                slice(len(indices)) if len(adapters) == 1 else (indices == adapter).nonzero()[:, 0]
            )
            yield adapter, rows


def _matrix(weights: Tensor, adapter: int) -> Tensor:
    """An adapter's weights as a matrix; vLLM keeps an axis of length 1 in some of them."""
    matrix = weights[adapter]
    return matrix.squeeze(0) if matrix.dim() == 3 else matrix
