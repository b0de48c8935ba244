"""The LM head's log-probs at the scored positions, without the full logits.

On CUDA this is TRL's Triton kernel. On a CPU TRL's fallback uses large float32 tiles. The function
here uses tiles that fit into the cache, in the operands' dtype. If the head is frozen (LoRA), the
forward also computes the gradient: 4HV multiplications per token instead of 6HV.

Shapes: S scored positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_dist.training import Context

# Rows per tile. With fewer, the head is read too often; with more, a tile exceeds the cache (on 2
# cores and V = 49,152, 128 rows take 0.8 of the time of 64 or 512).
TILE_ROWS = 128
# Rows per product of the head's gradient; each adds to a float32 matrix of the head's size.
HEAD_GRADIENT_ROWS = 1024
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
    """
    if hidden.device.type == "cuda":
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

        values = ChunkedLogProbFunction.apply(
            hidden, head.weight, head.bias, targets, 1.0, CHUNK, head.softcap, head.scale, OUTPUTS
        )
    else:
        values = TiledLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, head.softcap, head.scale
        )
    return dict(zip(OUTPUTS, values, strict=True))


class TiledLogProbs(torch.autograd.Function):
    """`score_tokens` on a CPU."""

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
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        tiles = _Tiles(Head(weight.to(dtype), bias, softcap, scale), len(hidden), dtype)
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        takes_gradient = ctx.needs_input_grad[0] and not trains_head
        by_hidden = torch.empty_like(hidden) if takes_gradient else None
        values = [torch.empty(len(hidden), dtype=tiles.exact) for _ in OUTPUTS[:-1]]
        log_probs, entropy, log_sum_sq, mean_logits = values
        is_top1 = torch.empty(len(hidden), dtype=torch.bool)
        for rows in _slices(len(hidden), TILE_ROWS):
            logits = tiles.logits(hidden[rows], targets[rows])
            at_target = logits.gather(1, targets[rows, None])[:, 0]
            largest = logits.amax(-1)
            is_top1[rows] = at_target >= largest
            mean_logits[rows] = logits.mean(-1) + tiles.shift
            probabilities = tiles.softmax()
            log_z = largest - probabilities.amax(-1).log()  # log p_max = largest - log_z
            log_probs[rows] = at_target - log_z
            log_sum_sq[rows] = torch.linalg.vector_norm(probabilities, dim=-1).log() * 2
            entropy[rows] = log_z - logits.mul_(probabilities).sum(-1)
            if by_hidden is not None:
                by_hidden[rows] = tiles.gradient_by_hidden(targets[rows])
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
            return *_head_gradients(ctx, grad), *(None,) * 3
        (by_hidden,) = ctx.saved_tensors
        return by_hidden * grad[:, None].to(by_hidden.dtype), *(None,) * 5


class _Tiles:
    """The working memory of one tile. It is allocated once, because new pages are slow."""

    def __init__(self, head: Head, rows: int, dtype: torch.dtype) -> None:
        self._head = head
        self.exact = torch.float64 if dtype == torch.float64 else torch.float32
        shape = (min(rows, TILE_ROWS), len(head.weight))
        self._projected = torch.empty(shape, dtype=dtype)
        self._logits = torch.empty(shape, dtype=self.exact)
        self._probabilities = torch.empty(shape, dtype=self.exact)
        self.shift = torch.empty(0)  # (n,), subtracted from the latest logits
        self._count = 0
        self._slope: Tensor | None = None  # derivative of the softcap

    def logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(n, V) for hidden (n, H), minus `shift` (n,); valid until the next call.

        bfloat16 rounds a logit of 20 to a multiple of 1/8. For accurate logits near the target's,
        `shift`, the target's rounded logit, is subtracted before the product is rounded. This does
        not change the probabilities.
        """
        head, self._count = self._head, len(hidden)
        projected = self._projected[: self._count]
        hidden = hidden.to(projected.dtype)
        if head.softcap is None:
            at_targets = (hidden.to(self.exact) * head.weight[targets]).sum(-1)
            shift = at_targets.to(projected.dtype)
            projected.copy_(shift[:, None]).neg_()
            projected.addmm_(hidden, head.weight.t())
            self.shift = shift.to(self.exact) * head.scale
        else:
            torch.mm(hidden, head.weight.t(), out=projected)
            self.shift = torch.zeros(self._count, dtype=self.exact)
        if head.bias is not None:
            projected += head.bias.to(projected.dtype)
        logits = self._logits[: self._count].copy_(projected)
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
        return self._projected[: self._count].copy_(weighted)

    def at_targets(self, targets: Tensor) -> Tensor:
        """(n, 1): the derivative of softcap and scale at the target."""
        slope = torch.ones(len(targets), 1, dtype=self.exact)
        if self._slope is not None:
            slope = self._slope.gather(1, targets[:, None])
        return slope * self._head.scale

    def gradient_by_hidden(self, targets: Tensor) -> Tensor:
        """d log p(target) / d hidden (n, H): the target's row of the head minus the mean row."""
        weight = self._head.weight
        at_targets = self.at_targets(targets)
        return at_targets * weight[targets] - self.weighted().mm(weight)


def _head_gradients(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Recompute every tile; gradients by hidden, weight and bias, summed at least in float32."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    hidden, weight, bias, targets = ctx.saved_tensors
    softcap, scale, dtype = ctx.head
    by_hidden = torch.empty_like(hidden)
    with maybe_gather_lm_head_ctx(weight, bias):
        cast_weight = weight.to(dtype)
        tiles = _Tiles(Head(cast_weight, bias, softcap, scale), len(hidden), dtype)
        by_weight = torch.zeros(weight.shape, dtype=tiles.exact)
        by_bias = torch.zeros(len(weight), dtype=tiles.exact)
        by_logit = torch.empty(min(len(hidden), HEAD_GRADIENT_ROWS), len(weight), dtype=dtype)
        for chunk in _slices(len(hidden), HEAD_GRADIENT_ROWS):
            at_targets = torch.empty(chunk.stop - chunk.start, 1, dtype=tiles.exact)
            for tile in _slices(chunk.stop - chunk.start, TILE_ROWS):
                rows = slice(chunk.start + tile.start, chunk.start + tile.stop)
                tiles.logits(hidden[rows], targets[rows])
                tiles.softmax()
                by_logit[tile] = tiles.weighted(grad[rows])
                at_targets[tile] = tiles.at_targets(targets[rows]) * grad[rows, None]
            rest = by_logit[: chunk.stop - chunk.start]
            inputs = hidden[chunk].to(dtype)
            target_rows = at_targets * cast_weight[targets[chunk]]
            by_hidden[chunk] = (target_rows - rest.mm(cast_weight)).to(hidden.dtype)
            by_weight -= rest.t().mm(inputs)
            by_weight.index_add_(0, targets[chunk], at_targets * inputs)
            if bias is not None:
                by_bias -= rest.sum(0, dtype=tiles.exact)
                by_bias.index_add_(0, targets[chunk], at_targets[:, 0])
    return by_hidden, by_weight.to(weight.dtype), None if bias is None else by_bias.to(bias.dtype)


def _slices(count: int, height: int) -> Iterator[slice]:
    for start in range(0, count, height):
        yield slice(start, min(start + height, count))
