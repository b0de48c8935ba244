"""The LM head's log-probs at the scored positions, without the full logits.

Logits are accumulated and kept in float32 whatever the operands' dtype: bfloat16 rounds a logit of
20 to a multiple of 1/8, which adds up to a nat over an answer. They exist only in tiles of rows. If
the head is frozen (LoRA), the forward also computes the gradient: 4HV multiplications per token
instead of 6HV. Nothing here makes the host wait for a GPU.

Shapes: S scored positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_dist.training import Context

# Rows per tile on a CPU. With fewer, the head is read too often; with more, a tile exceeds the
# cache (on 2 cores and V = 49,152, 128 rows take 0.8 of the time of 64 or 512).
TILE_ROWS = 128
# Bytes of a tile of float32 logits on a GPU: more rows would not make the products faster.
TILE_BYTES = 2**29
# Rows per product of the head's gradient on a CPU; each adds to a float32 matrix (V, H).
HEAD_GRADIENT_ROWS = 1024
# Rows of that matrix to which a product adds at once.
HEAD_ROWS = 2**15
HALF = (torch.bfloat16, torch.float16)
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class Head:
    """The output projection, and the scale and softcap of its logits."""

    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    softcap: float | None = None
    scale: float = 1.0


def score_tokens(hidden: Tensor, head: Head, targets: Tensor) -> dict[str, Tensor]:
    """TRL's `OUTPUTS` per position (S,), at `hidden` (S, H): log p(target), the entropy (nats), log
    sum p^2, the mean logit, and whether the target is a most likely token (with a tie, TRL counts
    only the lowest id). Only `log_probs` is differentiable, by `hidden` and the head.

    The values are float32 (float64 for float64 operands). Under autocast the operands are rounded
    to its dtype.
    """
    values = TiledLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head.softcap, head.scale
    )
    return dict(zip(OUTPUTS, values, strict=True))


def tile_rows(vocabulary: int, *, on_cpu: bool) -> int:
    """The number of rows of a tile of logits."""
    return TILE_ROWS if on_cpu else max(1, TILE_BYTES // (4 * vocabulary))


class TiledLogProbs(torch.autograd.Function):
    """`score_tokens`."""

    @staticmethod
    def forward(
        ctx: Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        scale: float,
    ) -> tuple[Tensor, ...]:
        kind, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        takes_gradient = ctx.needs_input_grad[0] and not trains_head
        by_hidden = torch.empty_like(hidden) if takes_gradient else None
        with torch.autocast(kind, enabled=False):
            tiles = _Tiles(Head(weight, bias, softcap, scale), hidden, dtype)
            values, is_top1 = _scores(tiles, hidden, targets, by_hidden)
        ctx.trains_head = trains_head
        ctx.head = softcap, scale, dtype
        if by_hidden is not None:
            ctx.save_for_backward(by_hidden)
        elif trains_head:
            ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.mark_non_differentiable(*values[1:], is_top1)
        return *values, is_top1

    @staticmethod
    def backward(ctx: Context, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        if ctx.trains_head:
            with torch.autocast(grad.device.type, enabled=False):
                return *_head_gradients(ctx, grad), *(None,) * 3
        (by_hidden,) = ctx.saved_tensors
        return by_hidden * grad[:, None].to(by_hidden.dtype), *(None,) * 5


def _scores(
    tiles: _Tiles, hidden: Tensor, targets: Tensor, by_hidden: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """The `OUTPUTS`; fills `by_hidden` (S, H), the derivative of `log_probs`, if it is given."""
    count = len(hidden)
    values = [hidden.new_empty(count, dtype=tiles.exact) for _ in OUTPUTS[:-1]]
    log_probs, entropy, log_sum_sq, mean_logits = values
    is_top1 = hidden.new_empty(count, dtype=torch.bool)
    for rows in _slices(count, tiles.rows):
        logits = tiles.logits(hidden[rows])
        at_target = logits.gather(1, targets[rows, None])[:, 0]
        largest = logits.amax(-1)
        is_top1[rows] = at_target >= largest
        mean_logits[rows] = logits.mean(-1)
        probabilities = tiles.softmax()
        log_z = largest - probabilities.amax(-1).log()  # log p_max = largest - log_z
        log_probs[rows] = at_target - log_z
        log_sum_sq[rows] = torch.linalg.vector_norm(probabilities, dim=-1).log() * 2
        entropy[rows] = log_z - logits.mul_(probabilities).sum(-1)
        if by_hidden is not None:
            by_hidden[rows] = tiles.gradient_by_hidden(targets[rows])
    return values, is_top1


class _Tiles:
    """The working memory of one tile of `rows` rows. It is allocated once, because new pages are
    slow. `weight` (V, H) is the head in the operands' dtype."""

    def __init__(self, head: Head, hidden: Tensor, dtype: torch.dtype) -> None:
        self._head = head
        self._half = dtype in HALF
        self._on_cpu = _on_cpu(hidden)
        self.exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight = head.weight.to(dtype)
        # A CPU has no product of half operands with a float32 result. But with float32 operands
        # that hold such values, oneDNN computes the same, as fast: see `_rounding_operands`.
        self._factor = head.weight.to(self.exact) if self._on_cpu else self.weight
        self.rows = min(len(hidden), tile_rows(len(head.weight), on_cpu=self._on_cpu))
        shape = (self.rows, len(head.weight))
        self._logits = hidden.new_empty(shape, dtype=self.exact)
        self._probabilities = hidden.new_empty(shape, dtype=self.exact)
        self._rounded = hidden.new_empty(shape, dtype=dtype) if self._half else None
        self._count = 0
        self._slope: Tensor | None = None  # derivative of the softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, V) for hidden (n, H); valid until the next call."""
        head, self._count = self._head, len(hidden)
        logits = self._logits[: self._count]
        hidden = hidden.to(self.weight.dtype)
        if self._half and not self._on_cpu:
            torch.mm(hidden, self.weight.t(), out_dtype=self.exact, out=logits)
        else:
            with _rounding_operands(self.weight.dtype):
                torch.mm(hidden.to(self._factor.dtype), self._factor.t(), out=logits)
        if head.bias is not None:
            logits += head.bias.to(self.exact)
        if head.scale != 1.0:
            logits *= head.scale
        if head.softcap is not None:
            capped = logits.div_(head.softcap).tanh_()
            self._slope = 1 - capped.square()
            logits *= head.softcap
        return logits

    def softmax(self) -> Tensor:
        """(n, V) probabilities of the latest logits."""
        torch.softmax(self._logits[: self._count], -1, out=self._probabilities[: self._count])
        return self._probabilities[: self._count]

    def weighted(self, grad: Tensor | None = None) -> Tensor:
        """(n, V): probabilities times the derivative of softcap and scale, times `grad` (n,), in
        the operands' dtype."""
        weighted = self._probabilities[: self._count]
        if self._slope is not None:
            weighted *= self._slope
        if self._head.scale != 1.0:
            weighted *= self._head.scale
        if grad is not None:
            weighted *= grad[:, None]
        return weighted if self._rounded is None else self._rounded[: self._count].copy_(weighted)

    def at_targets(self, targets: Tensor) -> Tensor:
        """(n, 1): the derivative of softcap and scale at the target."""
        if self._slope is None:
            return self._probabilities.new_full((len(targets), 1), self._head.scale)
        return self._slope.gather(1, targets[:, None]) * self._head.scale

    def gradient_by_hidden(self, targets: Tensor) -> Tensor:
        """d log p(target) / d hidden (n, H): the target's row of the head minus the mean row."""
        target_rows = self.at_targets(targets) * self.weight[targets]
        return target_rows - _product(self.weighted(), self.weight)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, accumulated in at least float32. On a GPU the result is float32, too; a CPU rounds it
    to the operands' dtype."""
    if _on_cpu(a) or a.dtype not in HALF:
        return a.mm(b)
    return torch.mm(a, b, out_dtype=torch.float32)


def _subtract_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total -= a @ b, in blocks of rows."""
    for rows in _slices(len(total), HEAD_ROWS):
        total[rows] -= _product(a[rows], b)


@contextmanager
def _rounding_operands(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN round float32 operands to `dtype` inside a product. Where the processor cannot, it
    computes with the operands as they are."""
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # has no stub
    before = backend.fp32_precision
    if dtype == torch.bfloat16:
        backend.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def _head_gradients(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Recompute every tile; gradients by hidden, weight and bias, summed at least in float32."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    hidden, weight, bias, targets = ctx.saved_tensors
    softcap, scale, dtype = ctx.head
    by_hidden = torch.empty_like(hidden)
    with maybe_gather_lm_head_ctx(weight, bias):
        tiles = _Tiles(Head(weight, bias, softcap, scale), hidden, dtype)
        by_weight = torch.zeros_like(weight, dtype=tiles.exact)
        by_bias = weight.new_zeros(len(weight), dtype=tiles.exact)
        # On a GPU one tile is enough for a product.
        height = HEAD_GRADIENT_ROWS if _on_cpu(hidden) else tiles.rows
        by_logit = None
        if height > tiles.rows:
            by_logit = weight.new_empty(min(len(hidden), height), len(weight), dtype=dtype)
        for chunk in _slices(len(hidden), height):
            at_targets = hidden.new_empty(chunk.stop - chunk.start, 1, dtype=tiles.exact)
            for tile in _slices(chunk.stop - chunk.start, tiles.rows):
                rows = slice(chunk.start + tile.start, chunk.start + tile.stop)
                tiles.logits(hidden[rows])
                tiles.softmax()
                rest = tiles.weighted(grad[rows])
                if by_logit is not None:
                    by_logit[tile] = rest
                at_targets[tile] = tiles.at_targets(targets[rows]) * grad[rows, None]
            if by_logit is not None:
                rest = by_logit[: chunk.stop - chunk.start]
            inputs = hidden[chunk].to(dtype)
            target_rows = at_targets * tiles.weight[targets[chunk]]
            by_hidden[chunk] = (target_rows - _product(rest, tiles.weight)).to(hidden.dtype)
            _subtract_product(by_weight, rest.t(), inputs)
            by_weight.index_add_(0, targets[chunk], at_targets * inputs)
            if bias is not None:
                by_bias -= rest.sum(0, dtype=tiles.exact)
                by_bias.index_add_(0, targets[chunk], at_targets[:, 0])
    return by_hidden, by_weight.to(weight.dtype), None if bias is None else by_bias.to(bias.dtype)


def _slices(count: int, height: int) -> Iterator[slice]:
    for start in range(0, count, height):
        yield slice(start, min(start + height, count))
