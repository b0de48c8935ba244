"""The reference's log-probs, computed once per row and kept on disk.

`<output_dir>/reference_logps/<key>.jsonl` holds a line per row of token ids. The key is a digest
of what the values depend on (the reference's weights with its adapter, the precision, LD-DPO's
alpha, which weighs the tokens) and of nothing else: a sweep over beta, learning rate or loss reads
what is there, whatever its layout, and a retrained SFT model has another key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dpo_dist.storage.artifacts import Journal, read_records
from dpo_dist.storage.records import Record
from dpo_dist.system import ranks
from dpo_dist.system.console import say


class ReferenceLogProbs(Record):
    """log pi_ref of a row's two completions, in nats, summed over their tokens."""

    row: str
    chosen: float
    rejected: float


POLL_SECONDS = 2.0


def reference_key(weights: Mapping[str, Any], precision: str, ld_alpha: float | None) -> str:
    """The name of the cache of one reference, whose weights are identified by digests."""
    parts = json.dumps([dict(weights), precision, ld_alpha], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def row_key(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """The identity of a pair as token ids."""
    return hashlib.sha256(repr((list(prompt), list(chosen), list(rejected))).encode()).hexdigest()


class ReferenceCache:
    """The values known for one reference. Only one run may fill it, which `locked` it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def locked(self, agreed: Callable[[bool], bool]) -> Iterator[None]:
        """Wait for other runs that fill the same cache, and keep them out.

        All ranks enter; rank 0 has the lock. They wait together and meet every few seconds, where
        `agreed` gives all of them what rank 0 says: a rank that came to a collective alone would
        end with its time-out.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as file:
            waits = False
            while not agreed(ranks.is_main() and _lock(file)):
                if not waits:
                    say(f"waiting for another run, which computes the reference ({self._path})")
                waits = True
                time.sleep(POLL_SECONDS)
            yield

    def read(self) -> dict[str, ReferenceLogProbs]:
        """By row. A torn last line, left by a crash, was cut off by `journal`."""
        if not self._path.exists():
            return {}
        return {record.row: record for record in read_records(self._path, ReferenceLogProbs)}

    def journal(self) -> Journal[ReferenceLogProbs]:
        return Journal(self._path, ReferenceLogProbs)


def _lock(file: IO[str]) -> bool:
    """Whether the file is locked now, which it is until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
