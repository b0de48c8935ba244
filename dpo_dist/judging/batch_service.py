"""Message batches: the record of each batch on disk, and the API calls."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.dialogue import Payload
from dpo_dist.judging.retry import Backoff
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.system.console import counted, say

if TYPE_CHECKING:
    from anthropic import Anthropic
    from anthropic.types.messages import MessageBatch


@dataclass
class BatchRecord:
    """A batch on disk. `<number>.json` is written before the batch is sent, so that a batch can be
    searched for if the process crashed before its id was saved. `<number>.results.jsonl` holds the
    API's own lines; it exists only once all of them are downloaded.

    `keys` are the `custom_id`s of the requests. `sent_at` is in seconds since the epoch.
    `strangers` are the ids of batches that looked like this one but contained other requests.
    """

    path: Path
    keys: list[str]
    sent_at: float
    batch_id: str | None = None
    strangers: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        return self.path.with_suffix(".results.jsonl")

    @classmethod
    def intend(cls, folder: Path, keys: Sequence[str]) -> BatchRecord:
        """Write the record of a batch that is about to be sent."""
        number = max((int(path.stem) for path in _paths(folder)), default=0) + 1
        record = cls(folder / f"{number:04d}.json", list(keys), time.time())
        record.save()
        return record

    def save(self, batch_id: str | None = None) -> None:
        """Write the record, with the batch's id at the API once it is known."""
        self.batch_id = batch_id
        write_json(
            self.path,
            {
                "batch_id": batch_id,
                "sent_at": self.sent_at,
                "strangers": self.strangers,
                "keys": self.keys,
            },
        )

    def is_ours(self) -> bool:
        """Whether at least one result belongs to a request of this record."""
        keys = set(self.keys)
        with self.results.open("rb") as lines:
            return any(_custom_id(line) in keys for line in lines)


def read_batches(folder: Path) -> list[BatchRecord]:
    """The batches of a folder, in the order in which they were sent."""
    return [BatchRecord(path, **read_json(path)) for path in _paths(folder)]


def _custom_id(line: bytes) -> str | None:
    """The `custom_id` of a result; None for a line that is not a result."""
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if re.fullmatch(r"\d+", path.stem))


T = TypeVar("T")

CLOCK_SLACK = 600.0  # seconds by which the API's clock and ours may differ
DOWNLOADS = 3  # attempts to download all results; after that, missing results are accepted


class BatchService:
    """The batch API, with one retry policy for every call."""

    def __init__(self, client: Anthropic, backoff: Backoff, pause: float) -> None:
        self._client = client
        self._backoff = backoff
        self._pause = pause
        self._claimed: set[str] = set()

    def find(self, batch: BatchRecord) -> bool:
        """Whether an earlier run sent the batch. A batch without a saved id is searched for at the
        API; the record is deleted if the batch was never sent."""
        for pause in (0.0, self._pause):  # the API may not list a new batch at once
            if batch.batch_id is None:
                time.sleep(pause)
                self._adopt(batch)
        if batch.batch_id is None:
            batch.path.unlink()
            return False
        self._claimed.add(batch.batch_id)
        return True

    def search_again(self, batch: BatchRecord) -> bool:
        """Give up a batch that was adopted but holds other requests, and search for ours."""
        assert batch.batch_id is not None
        say(f"batch {batch.batch_id}: contains other requests, so it is not ours")
        batch.strangers.append(batch.batch_id)
        batch.results.unlink(missing_ok=True)
        batch.save()
        return self.find(batch)

    def send(self, batch: BatchRecord, requests: list[Payload]) -> BatchRecord:
        """Create a batch exactly once. A failed call may have created it, so every further attempt
        first searches the API's list of batches."""
        tried = False

        def create() -> str:
            nonlocal tried
            if tried:
                self._adopt(batch)
            tried = True
            if batch.batch_id is not None:
                return batch.batch_id
            return self._client.messages.batches.create(requests=requests).id  # type: ignore[arg-type]

        batch_id = self._retried(create)
        batch.save(batch_id)
        self._claimed.add(batch_id)
        say(f"batch {batch_id}: {counted(len(batch.keys), 'request')}; results within 24 hours")
        return batch

    def fetch(self, batch: BatchRecord) -> bool:
        """Download the results of a batch that has ended; returns whether they are on disk. Raises
        `JudgeFailed` if the results no longer exist, or if the API names another host for them,
        since every request sends the API key."""
        if batch.results.exists():
            return True
        assert batch.batch_id is not None
        batch_id = batch.batch_id
        state = self._retried(lambda: self._client.messages.batches.retrieve(batch_id))
        if state.processing_status != "ended":
            return False
        if state.results_url is None:
            raise JudgeFailed(
                f"the results of batch {batch_id} no longer exist (archived {state.archived_at}). "
                f"Verdicts so far are kept; delete {batch.path} and run the same command again to "
                f"send its {counted(len(batch.keys), 'request')} again, and pay again."
            )
        ours, theirs = self._client.base_url.host, urlsplit(state.results_url).hostname
        if theirs != ours:
            raise JudgeFailed(
                f"the results of batch {batch_id} are reported to be on {theirs}, not on {ours}; "
                "the API key is not sent there. Verdicts so far are kept."
            )
        partial = batch.path.with_suffix(".results.partial")
        for _ in range(DOWNLOADS):
            if self._retried(lambda: self._download(batch_id, partial)) >= _size(state):
                break
        partial.replace(batch.results)
        return True

    def _adopt(self, batch: BatchRecord) -> None:
        """Adopt the newest batch that has as many requests and was created after the record was
        written. Its results show later whether it is ours."""
        earliest = datetime.fromtimestamp(batch.sent_at - CLOCK_SLACK, UTC)
        known = self._claimed | set(batch.strangers)

        def search() -> str | None:
            for found in self._client.messages.batches.list(limit=100):
                if found.created_at < earliest:
                    return None
                if found.id not in known and _size(found) == len(batch.keys):
                    return found.id
            return None

        if found := self._retried(search):
            say(f"batch {found}: sent earlier, adopted")
            batch.save(found)

    def _download(self, batch_id: str, path: Path) -> int:
        """Save the results unchanged; returns the number of complete lines."""
        with (
            self._client.messages.batches.with_streaming_response.results(batch_id) as response,
            path.open("wb") as file,
        ):
            for piece in response.iter_bytes():
                file.write(piece)
        with path.open("rb") as file:
            return sum(1 for line in file if line.endswith(b"\n"))

    def _retried(self, call: Callable[[], T]) -> T:
        attempt = 0
        while True:
            try:
                return call()
            except Exception as error:
                time.sleep(self._backoff.wait(attempt, error))
                attempt += 1


def _size(batch: MessageBatch) -> int:
    counts = batch.request_counts
    done = counts.succeeded + counts.errored + counts.canceled + counts.expired
    return counts.processing + done
