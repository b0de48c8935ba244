"""Answering prompts with an engine into a journal: what every generating phase does."""

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

# A record is on disk at the latest this many seconds, or records, after it was generated: an fsync
# for each would cost more than a small model's tokens.
FLUSH_SECONDS, FLUSH_RECORDS = 1.0, 1000
SHARD_STRIDE = 1_000_003  # between the seeds of shards; no shard has that many requests


def engine_seed(seed: int, done: int, shard: Shard) -> int:
    """The seed of an engine that goes on after `done` answers: neither a resumed run nor another
    shard may draw the noise again that was drawn before."""
    return seed + done + SHARD_STRIDE * shard.index


@dataclass(frozen=True)
class Pace:
    """How many tokens were generated, and the seconds until the first answer was there."""

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
    """Generate every request and journal `record(completion)` as answers finish.

    Of `total` answers an interrupted run had finished `done` before. The share of answers that
    were cut off stands behind the progress bar.
    """
    tokens = cut_off = 0
    first_seconds = 0.0
    pending: list[R] = []

    def flush() -> None:
        # Taken out first: an interrupt while they are written must not write them twice.
        nonlocal pending
        records, pending = pending, []
        journal.append(records)

    started = flushed = time.monotonic()
    with progress(name, total, done) as advance:
        try:
            for answered, completion in enumerate(engine.generate(requests), start=1):
                pending.append(record(completion))
                tokens += len(completion.token_ids)
                cut_off += completion.finish_reason == "length"
                if answered == 1:
                    first_seconds = time.monotonic() - started
                advance(1, f"{100 * cut_off / answered:.0f} % cut off")
                late = time.monotonic() - flushed > FLUSH_SECONDS
                if late or len(pending) >= FLUSH_RECORDS:
                    flush()
                    flushed = time.monotonic()
        finally:
            flush()
    return Pace(tokens, first_seconds)
