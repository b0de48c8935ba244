"""The sizes of DeepSpeed's buffers, in elements: buckets of gradients, and gathered weights. The
trainer sets them, and the plan counts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# A bucket of 0.4 GB keeps a network busy for milliseconds, against which the start of
# a collective counts for nothing, and a model of 7 B weights has 35 of them: all but the last one
# are reduced while the backward pass fills the next. DeepSpeed's default of 5e8 only takes more
# memory.
REDUCE_BUCKET = 200_000_000
# DeepSpeed's limit for the weights that ZeRO-3 gathers at a time. A smaller model would be gathered
# whole.
MAX_LIVE_PARAMETERS = 1_000_000_000


def buffers(stage: int, parameters: Iterable[Any]) -> dict[str, int | bool]:
    """The keys of `zero_optimization` for a model with these parameters. ZeRO-3 keeps at most an
    eighth of the weights gathered, those that it gathers ahead included."""
    # `ds_numel`: of a weight of which this rank holds a shard
    sizes = [(getattr(w, "ds_numel", w.numel()), w.requires_grad) for w in parameters]
    options = reduction(stage, [size for size, trained in sizes if trained])
    if stage == 3:
        live = gathered(sum(size for size, _ in sizes))
        options |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
    return options


def gathered(weights: int) -> int:
    """How many of a model's weights ZeRO-3 keeps gathered at most: an eighth."""
    return min(weights // 8, MAX_LIVE_PARAMETERS)


def reduction(stage: int, trained: Sequence[int]) -> dict[str, int | bool]:
    """The keys of `zero_optimization` for trained weights of these sizes. ZeRO-1 reduces once per
    step, where overlapping would hide less than it takes."""
    size = bucket(stage, sum(trained), max(trained, default=0))
    return {"reduce_bucket_size": size, "overlap_comm": stage >= 2}


def bucket(stage: int, trained: int, largest: int) -> int:
    """The size of a bucket for so many trained weights, in matrices of up to `largest`.

    ZeRO-2 reduces during the backward pass as ZeRO-3 does by default; then it has two buckets. Each
    must hold the largest weight: for one that does not fit, DeepSpeed frees the gradient while its
    own stream may still read it (`allreduce_and_copy_with_multiple_ranks` records only the slices
    of this rank).
    """
    size = min(trained, REDUCE_BUCKET)
    return max(size, largest) if stage == 2 else size
