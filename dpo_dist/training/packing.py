"""The packed layout: a prompt is computed once, and its completions follow as unpadded branches.

The rows of a group (chosen and rejected; any number works) share their first tokens, at least the
prompt. The packed row has the shared tokens once:

    [ shared[:-1] | shared[-1] a[:-1] | shared[-1] b[:-1] ]      for the rows shared+a, shared+b

The last shared token is repeated in every branch, because it predicts a different token in each:
so every hidden state has exactly one label. The last token of a row predicts nothing and is left
out.

Shapes: R rows, L the padded width, T packed positions, S of them scored, N completion tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpo_dist.training import Batch


@dataclass(frozen=True)
class Group:
    """Rows with common first tokens: `shared` positions from `start`, then branches (lengths)."""

    start: int
    shared: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class PackPlan:
    """Maps a padded batch to one packed row, and its log-probs back to the batch.

    - `source` (T,): the index of each packed position in the flattened padded batch.
    - `positions` (T,): rotary positions; every branch continues from the shared tokens.
    - `scored` (S,), `targets` (S,): the packed positions that predict a completion token, and
      those tokens.
    - `value_index` (N,): for every completion token of the padded batch, row by row, its index
      in `scored`. Tokens that completions share have the same index.
    - `query_offsets`, `key_offsets` (segments + 1,), `key_source`: the groups as segments for
      variable-length kernels. The queries of segment i see the keys
      `key_source[key_offsets[i]:key_offsets[i + 1]]`, causal from the bottom right.
    """

    groups: tuple[Group, ...]
    source: Tensor
    positions: Tensor
    scored: Tensor
    targets: Tensor
    value_index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    key_source: Tensor
    longest_query: int
    longest_key: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackPlan:
        """The plan on a device; `accelerate` calls this as it calls `Tensor.to`."""
        moved: Batch = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> PackPlan:
        """The plan in memory from which a GPU copies; torch's loader calls this as it calls
        `Tensor.pin_memory`."""
        pinned: Batch = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **pinned)


def plan_packing(
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    members: Sequence[Sequence[int]],
) -> PackPlan:
    """Plan the packed row of a right-padded batch: `input_ids`, `attention_mask`, `completion_mask`
    (R, L). `members` lists the rows of each group, which have the same prompt. Rows branch where
    their tokens first differ, which may be after the prompt."""
    rows, width = input_ids.shape
    lengths = attention_mask.sum(1).tolist()
    source: list[Tensor] = []
    positions: list[Tensor] = []
    groups: list[Group] = []
    # (row, t): the packed position that predicts token t + 1 of the row; -1: none.
    predicts = torch.full((rows, width - 1), -1)
    cursor = 0
    for member_rows in members:
        index = torch.tensor(member_rows)
        start, shared = cursor, _shared_length(input_ids[index], [lengths[r] for r in member_rows])
        source.append(member_rows[0] * width + torch.arange(shared))
        positions.append(torch.arange(shared))
        predicts[index, :shared] = start + torch.arange(shared)
        cursor += shared
        branches = []
        for row in member_rows:
            branch = torch.arange(shared, lengths[row] - 1)
            source.append(row * width + branch)
            positions.append(branch)
            predicts[row, branch] = cursor + torch.arange(len(branch))
            cursor += len(branch)
            branches.append(len(branch))
        groups.append(Group(start, shared, tuple(branches)))
    labelled = completion_mask[:, 1:].bool()
    scored, value_index = predicts[labelled].unique(return_inverse=True)
    assert bool((scored >= 0).all()), "a completion token without a position that predicts it"
    targets = torch.empty_like(scored)
    targets[value_index] = input_ids[:, 1:][labelled]
    return PackPlan(
        groups=tuple(groups),
        source=torch.cat(source),
        positions=torch.cat(positions),
        scored=scored,
        targets=targets,
        value_index=value_index,
        **_segments(groups),
    )


def _shared_length(ids: Tensor, lengths: Sequence[int]) -> int:
    """How many positions of these rows are computed once: all common tokens except the last."""
    common = ids[:, : min(lengths)]
    agree = (common == common[0]).all(0)
    return max(int(agree.long().cumprod(0).sum()) - 1, 0)


def _segments(groups: Sequence[Group]) -> Batch:
    """The groups as segments: the prefix with the first branch is an ordinary causal segment; every
    other branch sees the prefix and itself."""
    queries, keys, key_source = [0], [0], []
    for group in groups:
        prefix = torch.arange(group.start, group.start + group.shared)
        begin = group.start + group.shared
        for number, length in enumerate(group.branches):
            own = torch.arange(begin, begin + length)
            begin += length
            queries.append(queries[-1] + length + (group.shared if number == 0 else 0))
            keys.append(keys[-1] + group.shared + length)
            key_source += [prefix, own]
    return {
        "query_offsets": torch.tensor(queries, dtype=torch.int32),
        "key_offsets": torch.tensor(keys, dtype=torch.int32),
        "key_source": torch.cat(key_source),
        "longest_query": max(b - a for a, b in itertools.pairwise(queries)),
        "longest_key": max(b - a for a, b in itertools.pairwise(keys)),
    }
