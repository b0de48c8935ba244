"""The API's side of message batches: created once, found again, fetched whole."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.batch_record import BatchRecord
from dpo_dist.judging.retry import Backoff
from dpo_dist.system.console import counted, say

if TYPE_CHECKING:
    from anthropic import Anthropic
    from anthropic.types.messages import MessageBatch

T = TypeVar("T")

CLOCK_SLACK = 600.0  # seconds by which the API's clock and ours may differ
DOWNLOADS = 3  # of results that are fewer than they should be, before they are taken so


class BatchService:
    """The API's side of batches, with one retry policy for every call."""

    def __init__(self, client: Anthropic, backoff: Backoff, pause: float) -> None:
        self._client = client
        self._backoff = backoff
        self._pause = pause
        self._claimed: set[str] = set()

    def find(self, batch: BatchRecord) -> bool:
        """Whether an earlier run's batch was sent; looked for where its id was not noted."""
        if batch.batch_id is None:
            self._adopt(batch)
        if batch.batch_id is None:
            time.sleep(self._pause)  # it may have been created only just now
            self._adopt(batch)
        if batch.batch_id is None:
            batch.forget()
            return False
        self._claimed.add(batch.batch_id)
        return True

    def search_again(self, batch: BatchRecord) -> bool:
        """After another's batch had been adopted: whether there is one more that may be ours."""
        say(f"batch {batch.batch_id}: contains other requests, so it is not ours")
        batch.disown()
        return self.find(batch)

    def send(self, batch: BatchRecord, requests: list[dict[str, Any]]) -> BatchRecord:
        """Create a batch, once. A failure that leaves open whether it was created is no reason
        to create it again before the API's list of batches has been searched."""

        def create() -> str:
            if attempts["made"]:
                self._adopt(batch)
            attempts["made"] += 1
            if batch.batch_id is not None:
                return batch.batch_id
            return self._client.messages.batches.create(requests=requests).id  # type: ignore[arg-type]

        attempts: Counter[str] = Counter()
        batch.sent(self._retried(create))
        assert batch.batch_id is not None
        self._claimed.add(batch.batch_id)
        say(
            f"batch {batch.batch_id}: {counted(len(batch.keys), 'request')}; results within 24 "
            "hours"
        )
        return batch

    def fetch(self, batch: BatchRecord) -> bool:
        """Whether the results are on disk; a batch that has ended is downloaded.

        Raises `JudgeFailed` when the results are gone, and when the API names another host for
        them: the key goes with every request.
        """
        if batch.results.exists():
            return True
        assert batch.batch_id is not None
        batch_id = batch.batch_id
        state = self._retried(lambda: self._client.messages.batches.retrieve(batch_id))
        if state.processing_status != "ended":
            return False
        if state.results_url is None:
            raise JudgeFailed(
                f"the results of batch {batch_id} are gone (archived {state.archived_at}). "
                f"Verdicts so far are kept; delete {batch.path} and run the same command again to "
                f"send, and pay, for its {counted(len(batch.keys), 'request')} once more."
            )
        ours, theirs = self._client.base_url.host, urlsplit(state.results_url).hostname
        if theirs != ours:
            raise JudgeFailed(
                f"the results of batch {batch_id} are reported to be on {theirs}, not on {ours}; "
                "the API key is not sent there. Verdicts so far are kept."
            )
        for _ in range(DOWNLOADS):
            if self._retried(lambda: self._download(batch, state)) >= _size(state):
                break
        batch.partial.replace(batch.results)
        return True

    def _adopt(self, batch: BatchRecord) -> None:
        """Take for ours the newest batch of as many requests since the intent was noted. Whether
        it is, its results tell."""
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
            batch.sent(found)

    def _download(self, batch: BatchRecord, state: MessageBatch) -> int:
        """Save the results' lines as they are; how many there are."""
        with (
            self._client.messages.batches.with_streaming_response.results(state.id) as response,
            batch.partial.open("wb") as file,
        ):
            for piece in response.iter_bytes():
                file.write(piece)
        with batch.partial.open("rb") as file:
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
