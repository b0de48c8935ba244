"""Claude as a judge, thousands of messages at a time: Message Batches, at half the price.

A batch is paid for once it is created, and creating has no idempotency key. So the intent to send
is on disk before a batch is sent, its id right after; one that was sent and not noted is looked
for and adopted. Results are saved as they came before they are read.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.config import ClaudeConfig
from dpo_dist.judging.batch_record import BatchRecord, read_batches
from dpo_dist.judging.batch_service import BatchService
from dpo_dist.judging.claude_messages import Claude, Exchange
from dpo_dist.judging.judge import GROUP, Comparison
from dpo_dist.judging.retry import Backoff
from dpo_dist.judging.rubric import COMPARE, Form
from dpo_dist.judging.throttle import Clock
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import counted, say

MOST_REQUESTS = 100_000  # the API's limit
# The API takes 256 MB; but a body is in memory two or three times while it is sent.
BODY_BYTES = 12 * 10**6
LONGEST_PAUSE = 60.0  # seconds between two looks at a batch


class ClaudeBatchJudge(Claude):
    """Sends all comparisons, waits for the batches to end, and sends what is left once more."""

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
        self._clock = Clock(config.max_hours)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        from anthropic import Anthropic

        course = _Course(self, {self.key(c): c for c in comparisons}, self.config.max_attempts)
        if not course.wanted:
            return
        self._clock.start()
        with Anthropic(base_url=self.config.base_url, max_retries=0, timeout=600) as client:
            service = BatchService(client, self._backoff, self._first_pause)
            sent = [batch for batch in read_batches(self._folder) if service.find(batch)]
            yield from self._await(service, sent, course)
            course.forgive()
            while keys := course.unanswered():
                sent = [
                    service.send(BatchRecord.intend(self._folder, chunk), requests)
                    for chunk, requests in _bodies(course, keys)
                ]
                yield from self._await(service, sent, course)
            yield course.given_up()

    def _await(
        self, service: BatchService, sent: list[BatchRecord], course: _Course
    ) -> Iterator[Sequence[Ballot]]:
        """Look at the batches, less and less often, and read each once it has ended."""
        pause = self._first_pause
        while sent:
            for batch in list(sent):
                if not service.fetch(batch):
                    continue
                pause = self._first_pause
                if batch.is_ours():
                    sent.remove(batch)
                    yield from course.read(batch)
                elif not service.search_again(batch):
                    sent.remove(batch)
            if sent and self._clock.over:
                raise self._clock.failure()
            if sent:
                time.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)


def _bodies(
    course: _Course, keys: Sequence[str]
) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """The keys in chunks that fit into a batch each, with their requests."""
    chunk: list[str] = []
    requests: list[dict[str, Any]] = []
    size = 0
    for key in keys:
        request = {"custom_id": key, "params": course.exchange(key).request}
        length = len(json.dumps(request))
        if chunk and (len(chunk) == MOST_REQUESTS or size + length > BODY_BYTES):
            yield chunk, requests
            chunk, requests, size = [], [], 0
        chunk.append(key)
        requests.append(request)
        size += length
    if chunk:
        yield chunk, requests


class _Course:
    """How far every wanted comparison has come."""

    def __init__(self, judge: Claude, wanted: dict[str, Comparison], attempts: int) -> None:
        self.wanted = wanted
        self._judge = judge
        self._attempts = attempts
        self._open: dict[str, Exchange] = {}  # answered, and to be asked for a better answer
        self._failures: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}

    def exchange(self, key: str) -> Exchange:
        """The course of a comparison so far. A fresh one is not kept: a hundred thousand
        questions would fill the memory."""
        return self._open.get(key) or Exchange(self._judge, self.wanted[key])

    def forgive(self) -> None:
        """What failed in an earlier run has all its attempts again."""
        self._failures.clear()

    def unanswered(self) -> list[str]:
        """What is to be sent."""
        return [key for key in self.wanted if self._failures[key] < self._attempts]

    def given_up(self) -> list[Ballot]:
        """Ballots of what failed too often; they are asked again by the next command."""
        return [
            self._judge.ballot(
                comparison, "not_answered", reasoning=self._reasons.get(key, "no result")
            )
            for key, comparison in self.wanted.items()
        ]

    def read(self, batch: BatchRecord) -> Iterator[Sequence[Ballot]]:
        """The ballots that a batch's results decide, whatever their order.

        A result that nobody asked for and a second one for a request are left aside; requests
        without a result have failed. All of it is said.
        """
        asked, odd = set(batch.keys), Counter[str]()
        group: list[Ballot] = []
        with batch.results.open("rb") as lines:
            for line in lines:
                key, result = _parse(line)
                if key is None:
                    odd["unreadable"] += 1
                elif key not in asked:
                    odd["unknown or duplicate"] += 1
                else:
                    asked.remove(key)
                    if key in self.wanted and (ballot := self._take(key, result, odd)):
                        group.append(ballot)
                if len(group) == GROUP:
                    yield group
                    group = []
        yield group
        for key in asked & self.wanted.keys():
            odd["missing"] += 1
            self._failures[key] += 1
        if odd:
            found = ", ".join(f"{count} {name}" for name, count in sorted(odd.items()))
            say(f"batch {batch.batch_id}: {found} of {counted(len(batch.keys), 'result')}")

    def _take(self, key: str, result: dict[str, Any], odd: Counter[str]) -> Ballot | None:
        """A result's ballot, when it decides."""
        from anthropic.types import Message

        kind = result.get("type")
        exchange = self.exchange(key)
        if kind == "succeeded":
            exchange.usage.update(("attempts", "batch_attempts"))
            if not exchange.read(Message.construct(**result["message"])):
                self._open[key] = exchange
                return None
        else:
            odd[str(kind)] += 1
            error = (result.get("error") or {}).get("error") or {}
            self._reasons[key] = f"{kind}: {error.get('message', '')}".removesuffix(": ")
            if "too long" in str(error.get("message")):
                exchange.too_long()
            else:
                refused = error.get("type") == "invalid_request_error"
                self._failures[key] += self._attempts if refused else 1
                return None
        del self.wanted[key]
        self._open.pop(key, None)
        return exchange.ballot()


def _parse(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """(custom_id, result); (None, {}) for a line that is not one."""
    try:
        values = json.loads(line)
        key, result = values["custom_id"], values["result"]
        if result["type"] == "succeeded":
            _ = result["message"]["usage"], result["message"]["content"]
        return str(key), result
    except (ValueError, KeyError, TypeError):
        return None, {}
