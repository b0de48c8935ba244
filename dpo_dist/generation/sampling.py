"""Generates answers with an engine and writes them to a journal, for every generating phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from dpo_dist.generation.engine import Completion, Engine, Request
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Record
from dpo_dist.system.console import progress
from dpo_dist.system.ranks import Shard

R = TypeVar("R", bound=Record)

# Records are flushed to disk at the latest after this many seconds or records. An fsync for each
# record would take longer than a small model needs to generate it.
FLUSH_SECONDS, FLUSH_RECORDS = 1.0, 1000
SHARD_STRIDE = 1_000_003  # distance between the seeds of shards, above any number of requests


def engine_seed(seed: int, done: int, shard: Shard) -> int:
    """The seed of an engine that starts after `done` answers, so that no random numbers repeat."""
    return seed + done + SHARD_STRIDE * shard.index


@dataclass(frozen=True)
class Pace:
    """How many tokens were generated, and how many seconds the first answer took."""

    tokens: int
    first_seconds: float


def answer_all(
    engine: Engine,
    requests: Iterable[Request],
    record: Callable[[Completion], R],
    journal: Journal[R],
    *,
    name: str,
    done: int,
    total: int,
) -> Pace:
    """Answer every request and append `record(completion)` to the journal as answers finish. The
    progress bar starts at `done` of `total` and shows the share of answers that were cut off."""
    tokens = cut_off = 0
    first_seconds = 0.0
    pending: list[R] = []

    def flush() -> None:
        # Cleared first: after an interrupt during the write, `finally` must not write them again.
        nonlocal pending
        records, pending = pending, []
        journal.append(records)

    started = flushed = time.monotonic()
    with progress(name, total, done) as advance:
        try:
            for answers, completion in enumerate(engine.generate(requests), start=1):
                pending.append(record(completion))
                tokens += len(completion.token_ids)
                cut_off += completion.finish_reason == "length"
                if answers == 1:
                    first_seconds = time.monotonic() - started
                advance(1, f"{100 * cut_off / answers:.0f} % cut off")
                late = time.monotonic() - flushed > FLUSH_SECONDS
                if late or len(pending) >= FLUSH_RECORDS:
                    flush()
                    flushed = time.monotonic()
        finally:
            flush()
    return Pace(tokens, first_seconds)
