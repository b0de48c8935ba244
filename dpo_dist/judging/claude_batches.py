"""Claude as a judge by Message Batches: thousands of requests at a time, at half the price.

A batch is billed as soon as it is created, and the API has no idempotency key. So a record is
written before a batch is sent, and its id right after. If the process crashes in between, the next
run searches for the batch and adopts it. Results are saved unchanged before they are read.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dpo_dist.config import ClaudeConfig
from dpo_dist.judging.batch_service import BatchRecord, BatchService, read_batches
from dpo_dist.judging.claude import Claude, Exchange
from dpo_dist.judging.dialogue import Payload
from dpo_dist.judging.judge import GROUP, Comparison
from dpo_dist.judging.retry import Backoff, Clock
from dpo_dist.judging.rubric import COMPARE, Form
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import counted, say

MOST_REQUESTS = 100_000  # the API's limit
# The API accepts 256 MB, but sending holds a body in memory two or three times.
BODY_BYTES = 12 * 10**6
LONGEST_PAUSE = 60.0  # seconds between two polls of the batches


class ClaudeBatchJudge(Claude):
    """Sends all comparisons, waits for the batches to end, and resends those without a verdict."""

    def __init__(
        self,
        config: ClaudeConfig,
        folder: Path,
        form: Form = COMPARE,
        *,
        first_pause: float = 5.0,
        backoff_base: float = 0.5,
    ) -> None:
        super().__init__(config, form)
        self._folder = folder / "batches"
        self._first_pause = first_pause
        self._backoff = Backoff(config.max_attempts, backoff_base)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        from anthropic import Anthropic

        pending = _Pending(self, {self.key(c): c for c in comparisons}, self.config.max_attempts)
        if not pending.comparisons:
            return
        clock = Clock(self.config.max_hours)
        with Anthropic(base_url=self.config.base_url, max_retries=0, timeout=600) as client:
            service = BatchService(client, self._backoff, self._first_pause)
            sent = [batch for batch in read_batches(self._folder) if service.find(batch)]
            yield from self._await(service, sent, pending, clock)
            pending.failures.clear()  # those of an earlier run
            while keys := pending.unanswered():
                sent = [
                    service.send(BatchRecord.intend(self._folder, chunk), requests)
                    for chunk, requests in _bodies(pending, keys)
                ]
                yield from self._await(service, sent, pending, clock)
            yield pending.not_answered()

    def _await(
        self, service: BatchService, sent: list[BatchRecord], pending: _Pending, clock: Clock
    ) -> Iterator[Sequence[Ballot]]:
        """Poll the batches, less and less often, and read each one that has ended."""
        pause = self._first_pause
        while sent:
            for batch in list(sent):
                if not service.fetch(batch):
                    continue
                pause = self._first_pause
                if batch.is_ours():
                    sent.remove(batch)
                    yield from pending.read(batch)
                elif not service.search_again(batch):
                    sent.remove(batch)
            if sent and clock.over:
                raise clock.failure()
            if sent:
                time.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)


def _bodies(pending: _Pending, keys: Sequence[str]) -> Iterator[tuple[list[str], list[Payload]]]:
    """The keys with their requests, in chunks that each fit into one batch."""
    chunk: list[str] = []
    requests: list[Payload] = []
    size = 0
    for key in keys:
        request = {"custom_id": key, "params": pending.exchange(key).request}
        length = len(json.dumps(request))
        if chunk and (len(chunk) == MOST_REQUESTS or size + length > BODY_BYTES):
            yield chunk, requests
            chunk, requests, size = [], [], 0
        chunk.append(key)
        requests.append(request)
        size += length
    if chunk:
        yield chunk, requests


class _Pending:
    """The comparisons without a ballot, by key, and what was tried so far."""

    def __init__(self, judge: Claude, comparisons: dict[str, Comparison], attempts: int) -> None:
        self.comparisons = comparisons
        self.failures: Counter[str] = Counter()
        self._judge = judge
        self._attempts = attempts
        self._open: dict[str, Exchange] = {}  # an answer came, but no verdict
        self._reasons: dict[str, str] = {}

    def exchange(self, key: str) -> Exchange:
        """The exchange about a comparison. A new one is not kept, since a hundred thousand
        questions would fill the memory."""
        return self._open.get(key) or Exchange(self._judge, self.comparisons[key])

    def unanswered(self) -> list[str]:
        """The keys of the requests to send."""
        return [key for key in self.comparisons if self.failures[key] < self._attempts]

    def not_answered(self) -> list[Ballot]:
        """Ballots of the comparisons that failed too often; the next command asks them again."""
        return [
            self._judge.ballot(
                comparison, "not_answered", reasoning=self._reasons.get(key, "no result")
            )
            for key, comparison in self.comparisons.items()
        ]

    def read(self, batch: BatchRecord) -> Iterator[Sequence[Ballot]]:
        """The ballots from a batch's results, which may come in any order. Unknown and duplicate
        results are ignored; a request without a result has failed. Both are counted and printed."""
        missing, problems = set(batch.keys), Counter[str]()
        group: list[Ballot] = []
        with batch.results.open("rb") as lines:
            for line in lines:
                key, result = _parse(line)
                if key is None:
                    problems["unreadable"] += 1
                elif key not in missing:
                    problems["unknown or duplicate"] += 1
                else:
                    missing.remove(key)
                    if key in self.comparisons and (ballot := self._take(key, result, problems)):
                        group.append(ballot)
                if len(group) == GROUP:
                    yield group
                    group = []
        yield group
        for key in missing & self.comparisons.keys():
            problems["missing"] += 1
            self.failures[key] += 1
        if problems:
            found = ", ".join(f"{count} {name}" for name, count in sorted(problems.items()))
            say(f"batch {batch.batch_id}: {found} of {counted(len(batch.keys), 'result')}")

    def _take(self, key: str, result: Payload, problems: Counter[str]) -> Ballot | None:
        """The ballot of a result; None if the comparison is still pending."""
        from anthropic.types import Message

        kind = result.get("type")
        exchange = self.exchange(key)
        if kind == "succeeded":
            exchange.usage.update(("attempts", "batch_attempts"))
            if not exchange.read(Message.construct(**result["message"])):
                self._open[key] = exchange
                return None
        else:
            problems[str(kind)] += 1
            error = (result.get("error") or {}).get("error") or {}
            self._reasons[key] = f"{kind}: {error.get('message', '')}".removesuffix(": ")
            if "too long" not in str(error.get("message")):
                final = error.get("type") == "invalid_request_error"
                self.failures[key] += self._attempts if final else 1
                return None
            exchange.too_long()
        del self.comparisons[key]
        self._open.pop(key, None)
        return exchange.ballot()


def _parse(line: bytes) -> tuple[str | None, Payload]:
    """(custom_id, result); (None, {}) for a line that is not a result."""
    try:
        values = json.loads(line)
        key, result = values["custom_id"], values["result"]
        if result["type"] == "succeeded":
            _ = result["message"]["usage"], result["message"]["content"]
        return str(key), result
    except (ValueError, KeyError, TypeError):
        return None, {}
