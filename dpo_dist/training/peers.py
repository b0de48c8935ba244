"""The ranks that `accelerate launch` or torchrun has started. Rank 0 runs the phase, and the others
wait for the trainings that it starts.

They wait in the key-value store of torch's rendezvous and not in a collective, which has a
time-out: tokenization may take longer.

    job/<n>     the n-th training, announced by rank 0
    ready/<n>   the number of other ranks that are ready for it
    left        why a rank left before rank 0 had ended
    ended       rank 0's exit code; written last
    gone        the number of other ranks that have read it
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from dpo_dist.errors import NodeLost, PhaseFailed, Preempted
from dpo_dist.system import ranks
from dpo_dist.training.job import TrainingJob

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_SECONDS = 0.2
CONNECT_SECONDS = 600.0  # the other machines may start later
GONE_SECONDS = 3.0


class Peers:
    """The store, as one of the ranks uses it."""

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self._store, self._rank, self._others = store, rank, count - 1
        self._announced = 0

    @classmethod
    def connect(cls) -> Peers:
        """Connect to the ranks of this process's launcher. Raises `NodeLost`."""
        from torch._C._distributed_c10d import HashStore, PrefixStore
        from torch.distributed.rendezvous import rendezvous

        rank, count = ranks.rank(), ranks.world_size()
        if count == 1:
            return cls(HashStore(), rank, count)
        try:
            wait = timedelta(seconds=CONNECT_SECONDS)
            store, _, _ = next(rendezvous("env://", timeout=wait))
        except RuntimeError as error:
            raise NodeLost(f"the launcher's rendezvous does not answer: {error}") from None
        # A launcher that restarts its processes may keep the store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(PrefixStore(f"dpo_dist/{attempt}", store), rank, count)

    # Rank 0.

    def announce(self, job: TrainingJob) -> None:
        """Let all ranks join a training; return when they are ready. Raises `PhaseFailed` if one
        of them has left, and `Preempted` if it was stopped."""
        self._announced += 1
        self._store.set(f"job/{self._announced}", job.model_dump_json())
        while self._store.add(f"ready/{self._announced}", 0) < self._others:
            self.check()
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise what a rank that has left has posted."""
        if self._store.check(["left"]):
            status, message = json.loads(self._store.get("left"))
            raise (Preempted if status == Preempted.exit_code else PhaseFailed)(message)

    def end(self, status: int) -> None:
        """Publish rank 0's exit code, and wait until the others know it."""
        with suppress(RuntimeError):  # the launcher has ended, and with it the store
            self._store.set("ended", str(status))
            self._await_all_gone()

    # The other ranks.

    def wait(self) -> TrainingJob | int:
        """The next training, or rank 0's exit code. Raises `NodeLost` if the store is gone."""
        key = f"job/{self._announced + 1}"
        try:
            while True:
                if self._store.check(["ended"]):
                    return int(self._store.get("ended"))
                if self._store.check([key]):
                    self._announced += 1
                    return TrainingJob.model_validate_json(self._store.get(key))
                time.sleep(POLL_SECONDS)
        except RuntimeError as error:
            raise NodeLost(f"rank 0 or its launcher has ended: {error}") from None

    def go(self) -> None:
        """Tell the others that this rank knows rank 0's exit code, and wait until all do."""
        with suppress(RuntimeError):
            self._store.add("gone", 1)
            self._await_all_gone()

    def ready(self) -> None:
        """Tell rank 0 that this rank joins the training."""
        self._store.add(f"ready/{self._announced}", 1)

    def leave(self, status: int, message: str) -> None:
        """Tell rank 0 that this rank ends before it."""
        with suppress(RuntimeError):  # nobody is left to be told
            self._store.set("left", json.dumps([status, f"rank {self._rank}: {message}"]))

    def _await_all_gone(self) -> None:
        """A launcher ends all ranks when one has ended with an error, and rank 0 may host the
        store."""
        deadline = time.monotonic() + GONE_SECONDS
        while self._store.add("gone", 0) < self._others and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
