"""FlexAttention over packed rows: on a GPU, for what the flash kernel cannot do.

These are softcaps, attention sinks (which need a differentiable log-sum-exp), float32 and heads
wider than 256. The kernel is compiled from the mask of the packed row, at its first use.

Shapes: H query heads, K key heads, T packed positions, D the head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from dpo_dist.training.packing import Group
from dpo_dist.training.segment_attention import Rule

# (batch, head, query, key) -> whether the query sees the key.
MaskFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    rule: Rule,
    *,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """query (H, T, D), key and value (K, T, D) -> (output (H, T, D), log-sum-exp of the scores
    (H, T) if `with_lse`). On a CPU only the output, and without gradients."""
    result = _kernel(query.device.type)(
        query[None],
        key[None],
        value[None],
        score_mod=_capped(rule.softcap),
        block_mask=block_mask(groups, rule.window, query.device),
        scale=rule.scale,
        enable_gqa=len(query) != len(key),
        return_aux=AuxRequest(lse=True) if with_lse else None,
    )
    if with_lse:
        out, aux = result
        return out[0], aux.lse[0]
    return result[0], None


@functools.cache
def _kernel(device: str) -> Any:
    # Without compilation the scores of all positions would be in memory.
    return torch.compile(flex_attention) if device == "cuda" else flex_attention


@functools.cache  # the compiled kernel is kept by the function that it contains
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    bound: float = softcap

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return torch.tanh(score / bound) * bound

    return cap


@functools.lru_cache(maxsize=8)  # all layers of a step have the same few masks
def block_mask(groups: tuple[Group, ...], window: int | None, device: torch.device) -> BlockMask:
    """The mask of a packed row, with the blocks that can be skipped."""
    length = sum(group.shared + sum(group.branches) for group in groups)
    sees = mask_function(groups, window, device)
    return create_block_mask(
        sees, None, None, length, length, device=device, _compile=device.type == "cuda"
    )


def mask_function(
    groups: tuple[Group, ...], window: int | None, device: torch.device
) -> MaskFunction:
    """A query sees itself and what precedes it in its own branch and in its group's prefix, at
    most `window` positions back."""
    own, prefix, end, position = _bounds(groups).to(device)

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prefix = (key >= prefix[query]) & (key < end[query])
        seen: Tensor = (key <= query) & ((key >= own[query]) | in_prefix)
        if window is not None:
            seen = seen & (position[query] - position[key] < window)
        return seen

    return sees


def _bounds(groups: tuple[Group, ...]) -> Tensor:
    """(4, T): where the position's branch begins, where its group's prefix begins and ends (packed
    indices), and its position in its own sequence."""
    columns = []
    for group in groups:
        begin, end = group.start, group.start + group.shared
        for start, stop, first in [(begin, end, 0), *_branches(group)]:
            count = stop - start
            fixed = torch.tensor([[start], [begin], [end]]).expand(3, count)
            columns.append(torch.cat((fixed, first + torch.arange(count)[None])))
    return torch.cat(columns, 1)


def _branches(group: Group) -> list[tuple[int, int, int]]:
    """(begin, end, position of the first token) of each branch."""
    found, begin = [], group.start + group.shared
    for length in group.branches:
        found.append((begin, begin + length, group.shared))
        begin += length
    return found
