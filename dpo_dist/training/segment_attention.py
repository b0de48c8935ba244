"""Attention over packed groups in plain torch operations: for CPUs, softcaps and any dtype.

The forward uses torch's CPU flash kernel if possible, which keeps the softmax in float32. The
backward recomputes the probabilities from the saved log-sum-exp, block by block, as five matrix
products: on a CPU about twice as fast as torch's own kernel.

Shapes: H query heads, K key heads (H = K times the heads of a group), T packed positions, D the
head dimension; in a block, n queries see m keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo_dist.training import Context
from dpo_dist.training.packing import Group

# Queries per block. A block skips all keys after its last query, so smaller blocks skip more of the
# causal half. On a CPU with AVX-512, blocks of 64 to 256 make the forward about equally fast, and
# faster than one causal call; the backward is fastest with 128.
BLOCK = 128


@dataclass(frozen=True)
class Rule:
    """How scores are computed and masked: softcap * tanh(scale * q.k / softcap), causal, at most
    `window` keys back."""

    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class _Segment:
    """Consecutive queries, whose keys are a shared `prefix` and their `own` positions. The first
    branch and the prefix are one segment without a prefix."""

    prefix: slice
    own: slice

    def gather(self, x: Tensor) -> Tensor:
        """(K, m, D) of x (K, T, D)."""
        if self.prefix.start == self.prefix.stop:
            return x[:, self.own]
        return torch.cat((x[:, self.prefix], x[:, self.own]), 1)

    def scatter_add(self, whole: Tensor, part: Tensor) -> None:
        """The reverse of `gather`, for gradients."""
        shared = self.prefix.stop - self.prefix.start
        whole[:, self.prefix] += part[:, :shared]
        whole[:, self.own] += part[:, shared:]

    def blocks(self, keys: int, window: int | None) -> Iterator[tuple[slice, slice]]:
        """(queries in the packed row, keys in the segment); query i of n is the key m - n + i."""
        count = self.own.stop - self.own.start
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            end = keys - count + stop
            begin = max(0, end - (stop - start) - window + 1) if window else 0
            yield slice(self.own.start + start, self.own.start + stop), slice(begin, end)


def _segments(groups: Sequence[int]) -> Iterator[_Segment]:
    numbers = iter(groups)
    for start in numbers:
        shared, count = next(numbers), next(numbers)
        end = start + shared
        for number in range(count):
            begin, end = end, end + next(numbers)
            if number == 0:
                yield _Segment(slice(0, 0), slice(start, end))
            elif begin < end:
                yield _Segment(slice(start, start + shared), slice(begin, end))


@torch.library.custom_op("dpo_dist::segment_attention", mutates_args=())
def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: list[int],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """query (H, T, D), key and value (K, T, D), `groups` from `flattened` -> (output (H, T, D),
    log-sum-exp of the scores (H, T)); both are differentiable, on any device and in any dtype."""
    rule = Rule(scale, window, softcap)
    out = query.new_empty(*query.shape[:2], value.shape[-1])
    lse = query.new_empty(query.shape[:2], dtype=_accumulator(query))
    attend = _flash if query.device.type == "cpu" and softcap is None else _attend
    for segment in _segments(groups):
        keys, values = segment.gather(key), segment.gather(value)
        for rows, seen in segment.blocks(keys.shape[1], window):
            block = attend(query[:, rows], keys[:, seen], values[:, seen], rule)
            out[:, rows], lse[:, rows] = block
    return out, lse


def flattened(groups: Sequence[Group]) -> list[int]:
    """The integers start, shared length, number of branches and their lengths, for each group."""
    return [n for g in groups for n in (g.start, g.shared, len(g.branches), *g.branches)]


def _keep(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.groups, *rule = inputs
    ctx.rule = Rule(*rule)
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx: Context, grad: Tensor, by_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse = ctx.saved_tensors
    rule: Rule = ctx.rule
    by_query = torch.empty_like(query)
    by_key, by_value = (torch.zeros_like(x, dtype=lse.dtype) for x in (key, value))
    # The gradient by a score is p (grad . value - grad . output + by_lse), where p is the key's
    # probability, because d lse / d score = p.
    delta = (grad.to(lse.dtype) * out).sum(-1)  # (H, T)
    if by_lse is not None:
        delta -= by_lse
    fast = query.dtype == torch.bfloat16 and rule.softcap is None
    differentiate = _bfloat16_gradients if fast else _gradients
    if fast:
        query, grad = _widen(query * rule.scale, -lse), _widen(grad, -delta)
        key, value = (torch.cat((x, x.new_ones(*x.shape[:2], 2)), -1) for x in (key, value))
    for segment in _segments(ctx.groups):
        keys, values = segment.gather(key), segment.gather(value)
        count = keys.shape[1]
        by_keys, by_values = (x.new_zeros(len(x), count, x.shape[-1]) for x in (by_key, by_value))
        for rows, seen in segment.blocks(count, rule.window):
            queries = _Queries(query[:, rows], grad[:, rows], lse[:, rows], delta[:, rows])
            gradients = differentiate(queries, keys[:, seen], values[:, seen], rule)
            by_query[:, rows] = gradients[0]
            by_keys[:, seen] += gradients[1]
            by_values[:, seen] += gradients[2]
        segment.scatter_add(by_key, by_keys)
        segment.scatter_add(by_value, by_values)
    return by_query, by_key.to(grad.dtype), by_value.to(grad.dtype), *(None,) * 4


torch.library.register_autograd("dpo_dist::segment_attention", _backward, setup_context=_keep)


@dataclass(frozen=True)
class _Queries:
    """A block's queries and their output's gradient (H, n, D), the log-sum-exp of their scores and
    gradient . output (H, n)."""

    query: Tensor
    grad: Tensor
    lse: Tensor
    delta: Tensor


def _flash(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """(output (H, n, D), log-sum-exp (H, n)) of one block, with torch's CPU kernel."""
    groups = query.shape[0] // key.shape[0]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.unflatten(0, (-1, groups)),
        # Heads of a group share their keys. Expanded views copy nothing.
        key[:, None].expand(-1, groups, -1, -1),
        value[:, None].expand(-1, groups, -1, -1),
        attn_mask=_bias(query.shape[1], key.shape[1], rule.window, query.dtype, query.device),
        scale=rule.scale,
    )
    return out.flatten(0, 1), lse.flatten(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """`_flash` in plain operations, for cases that the kernel does not support."""
    scores, _ = _scores(query, key, rule)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().to(value.dtype)
    return weights.flatten(1, 2).bmm(value).view_as(query), lse.flatten(0, 1)


def _scores(query: Tensor, key: Tensor, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """(scores (K, groups, n, m) in the accumulator's dtype, derivative of the softcap)."""
    products = _fold(query, key).bmm(key.transpose(1, 2)).to(_accumulator(query)) * rule.scale
    scores = products.unflatten(1, (-1, query.shape[1]))
    slope = None
    if rule.softcap is not None:
        capped = torch.tanh(scores / rule.softcap)
        scores, slope = rule.softcap * capped, 1 - capped.square()
    bias = _bias(query.shape[1], key.shape[1], rule.window, scores.dtype, query.device)
    return scores + bias, slope


def _gradients(
    queries: _Queries, key: Tensor, value: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block by query (H, n, D), key and value (K, m, D)."""
    query, dtype = queries.query, queries.lse.dtype
    scores, slope = _scores(query, key, rule)
    weights = (scores - _fold(queries.lse, key)[..., None]).exp()
    grad = _fold(queries.grad, key)
    by_weight = grad.bmm(value.transpose(1, 2)).to(dtype).view_as(weights)
    by_score = (by_weight - _fold(queries.delta, key)[..., None]) * weights * rule.scale
    if slope is not None:
        by_score *= slope
    folded = by_score.to(query.dtype).flatten(1, 2)
    return (
        folded.bmm(key).view_as(query),
        folded.transpose(1, 2).bmm(_fold(query, key)),
        weights.to(query.dtype).flatten(1, 2).transpose(1, 2).bmm(grad),
    )


def _bfloat16_gradients(
    queries: _Queries, key: Tensor, value: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """`_gradients` without a float32 copy of the scores, which would double the time.

    Every operand has two extra columns (`_widen`; ones in key and value), so that the products are
    already score - lse and grad . value - delta. What is rounded is then a log-probability, which
    is close to 0 if the probability is not.
    """
    query = queries.query
    count, seen = query.shape[1], key.shape[1]
    scaled, grad = _fold(query, key), _fold(queries.grad, key)
    scores = scaled.bmm(key.transpose(1, 2))
    # Without a window only the last square has keys after their query.
    near = seen if rule.window else count
    bias = _bias(count, near, rule.window, key.dtype, key.device)
    scores.unflatten(1, (-1, count))[..., seen - near :] += bias
    weights = scores.exp_()
    by_score = grad.bmm(value.transpose(1, 2)).mul_(weights)
    key, scaled, grad = (x[..., :-2].contiguous() for x in (key, scaled, grad))
    return (
        by_score.bmm(key).view(*query.shape[:2], -1).mul_(rule.scale),
        by_score.transpose(1, 2).bmm(scaled),
        weights.transpose(1, 2).bmm(grad),
    )


def _fold(x: Tensor, key: Tensor) -> Tensor:
    """(H, n, D) -> (K, groups * n, D), or (H, n) -> (K, groups, n): the heads of a group become
    rows of one product."""
    return x.reshape(key.shape[0], -1, x.shape[-1])


def _widen(x: Tensor, extra: Tensor) -> Tensor:
    """x (H, T, D) bfloat16, extra (H, T) float32 -> (H, T, D + 2). The sum of the two additional
    columns is `extra` with 16 bits of precision."""
    high = extra.to(torch.bfloat16)
    low = (extra - high).to(torch.bfloat16)
    return torch.cat((x, high[..., None], low[..., None]), -1)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _bias(
    queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The mask (n, m) that is added to the scores: -inf for keys that a query does not see. Causal
    from the bottom right, at most `window` keys back; `queries` is at most `BLOCK`."""
    # A slice of a larger mask: blocks of many sizes have the same diagonals.
    longest = 1 << (keys + BLOCK - 1).bit_length()
    end = longest - BLOCK + queries
    return _band(longest, window, dtype, device)[:queries, end - keys : end]


@functools.cache  # used by every layer of a step, with few lengths (powers of 2)
def _band(longest: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`_bias` for `BLOCK` queries and `longest` keys."""
    ones = torch.ones(BLOCK, longest, dtype=torch.bool, device=device)
    seen = ones.tril(longest - BLOCK)
    if window:
        seen = seen.triu(longest - BLOCK - window + 1)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
