"""Answering prompts with an engine into a journal: what every generating phase does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from dpo_dist.artifacts import Journal
from dpo_dist.console import progress
from dpo_dist.generation.engine import Completion, Engine, Request
from dpo_dist.records import Record

R = TypeVar("R", bound=Record)

# A record is on disk at the latest this many seconds after it was generated: an fsync for each
# would cost more than a small model's tokens.
FLUSH_SECONDS = 1.0


def answer_all(
    engine: Engine,
    requests: Sequence[Request],
    record: Callable[[Completion], R],
    journal: Journal[R],
    *,
    name: str,
    done: int,
) -> int:
    """Generate every request, journal `record(completion)` as answers finish, and return the
    number of tokens generated. `done` is how many an interrupted run had finished before."""
    tokens = 0
    pending: list[R] = []
    flushed = time.monotonic()
    with progress(name, done + len(requests), done) as advance:
        try:
            for completion in engine.generate(requests):
                pending.append(record(completion))
                tokens += len(completion.token_ids)
                advance(1)
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    journal.append(pending)
                    pending.clear()
                    flushed = time.monotonic()
        finally:
            journal.append(pending)
    return tokens
