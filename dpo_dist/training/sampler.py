"""The order of the pairs, which depends only on seed and epoch.

A global batch has the same pairs for any number of processes and any gradient accumulation, so a
run file trains the same way everywhere. Within it, all ranks get the same number of pairs and about
the same number of tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler


class GlobalBatchSampler(BatchRebalanceSampler):  # type: ignore[misc]  # transformers is untyped
    """Yields this rank's micro-batches, lists of row numbers, each of `micro_batch_size` rows.

    The last global batch of an epoch is filled up with the epoch's first pairs: it must be divided
    among the ranks, and all pairs should count the same. (`Trainer` does not shard the base class.)
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        global_batch_size: int,
        micro_batch_size: int,
        world_size: int,
        rank: int,
        seed: int,
    ) -> None:
        accumulation, rest = divmod(global_batch_size, micro_batch_size * world_size)
        assert not rest and len(lengths), (global_batch_size, micro_batch_size, world_size)
        super().__init__(
            lengths=list(lengths),
            effective_batch_size=global_batch_size,
            dp_size=world_size,
            grad_accum=accumulation,
            rank=rank,
            seed=seed,
            drop_last=False,
        )
        self._micro_batch_size = micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            for together in self._deal(self._fill(batch)):
                yield together[self.rank]

    def global_batches(self) -> Iterator[list[int]]:
        """The epoch's global batches, the same on every rank."""
        count, size = len(self.lengths), self.effective_batch_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(count, generator=generator).tolist()
        padded = order * (1 + size // count)  # a batch may be larger than the data
        for start in range(0, count, size):
            batch = order[start : start + size]
            yield batch + padded[: size - len(batch)]

    def _fill(self, batch: Sequence[int]) -> list[list[int]]:
        """Micro-batches with the same number of pairs and about the same number of tokens, largest
        first. Greedy: the longest pairs first, each to the bin with the fewest tokens."""
        bins: list[list[int]] = [[] for _ in range(self.dp_size * self.grad_accum)]
        loads = [0] * len(bins)
        with_room = [(0, number) for number in range(len(bins))]  # a heap
        for row in sorted(batch, key=lambda row: (-self.lengths[row], row)):
            load, target = heapq.heappop(with_room)
            bins[target].append(row)
            loads[target] = load + self.lengths[row]
            if len(bins[target]) < self._micro_batch_size:
                heapq.heappush(with_room, (loads[target], target))
        return [bins[i] for i in sorted(range(len(bins)), key=lambda i: (-loads[i], i))]

    def _deal(self, bins: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """The micro-batches that the ranks process at the same time: neighbours in the order of
        size, the largest to the rank with the fewest tokens of this global batch so far."""
        tokens = [0] * self.dp_size
        for start in range(0, len(bins), self.dp_size):
            together: list[list[int]] = [[] for _ in tokens]
            ranks = sorted(range(self.dp_size), key=lambda rank: (tokens[rank], rank))
            for rank, rows in zip(ranks, bins[start : start + self.dp_size], strict=True):
                together[rank] = rows
                tokens[rank] += sum(self.lengths[row] for row in rows)
            yield together
