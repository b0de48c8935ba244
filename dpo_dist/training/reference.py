"""The cache of the reference's log-probs: each row of token ids is computed once.

`<output_dir>/reference_logps/<key>.jsonl` has one line per row. The key is a digest of everything
that the values depend on: the reference's weights with its adapter, the precision, and LD-DPO's
alpha, which weights the tokens. So a sweep over beta, learning rate, loss or layout reuses the
values, and a retrained SFT model gets another key.

In later rounds the reference may be the initial SFT model, from which training does not start. Then
a separate pass loads it as policy and reference, fills the cache and trains one step, which is
discarded, so that the first loss is checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from dpo_dist.config import KlMonitor
from dpo_dist.storage.artifacts import Journal, read_records
from dpo_dist.storage.records import Record
from dpo_dist.system import ranks
from dpo_dist.system.console import say
from dpo_dist.training.job import TrainingJob

POLL_SECONDS = 2.0


class ReferenceLogProbs(Record):
    """log pi_ref of a row's two completions, summed over their tokens (nats)."""

    row: str
    chosen: float
    rejected: float


def reference_key(weights: Mapping[str, JsonValue], precision: str, ld_alpha: float | None) -> str:
    """The name of a reference's cache; `weights` identifies the model and adapter by digests."""
    parts = json.dumps([dict(weights), precision, ld_alpha], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def row_key(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """A digest of a pair's token ids."""
    return hashlib.sha256(repr((list(prompt), list(chosen), list(rejected))).encode()).hexdigest()


class ReferenceCache:
    """The cached values of one reference. A run must hold the lock to fill it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self, agreed: Callable[[bool], bool]) -> Iterator[None]:
        """Hold the lock; wait for other runs that fill the same cache. All ranks enter, and rank 0
        takes the lock. `agreed` broadcasts its success in every attempt, so that no rank waits
        alone in a collective until its time-out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            waiting = False
            while not agreed(ranks.is_main() and _lock(file)):
                if not waiting:
                    say(f"waiting for another run that computes the reference ({self.path})")
                waiting = True
                time.sleep(POLL_SECONDS)
            yield

    def read(self) -> dict[str, ReferenceLogProbs]:
        """The values by row key. `journal` has removed an incomplete last line."""
        if not self.path.exists():
            return {}
        return {record.row: record for record in read_records(self.path, ReferenceLogProbs)}

    def journal(self) -> Journal[ReferenceLogProbs]:
        return Journal(self.path, ReferenceLogProbs)


def _lock(file: IO[str]) -> bool:
    """Try to lock the file until it is closed; return whether it succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def reference_job(job: TrainingJob) -> TrainingJob:
    """The job of the separate pass: it starts from the reference, with a minimal global batch."""
    assert job.reference is not None
    settings = job.settings
    batch = settings.micro_batch_size * job.shape.processes
    smaller = {"global_batch_size": batch, "kl": KlMonitor(prompts=0), "select": "last"}
    return job.model_copy(
        update={
            "kind": "reference",
            "settings": settings.model_copy(update=smaller),
            "model": job.reference.model,
            "adapter": job.reference.adapter,
            "start": job.reference.identity,
            "reference": None,
            "out": job.out / "reference",
            "wandb": None,
        }
    )
