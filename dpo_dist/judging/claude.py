"""Claude as a judge, one message after the other: the Messages API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dpo_dist.config import ClaudeConfig
from dpo_dist.judging.claude_messages import Claude, Exchange
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, NotAMessage
from dpo_dist.judging.rubric import COMPARE, Form
from dpo_dist.judging.throttle import Clock
from dpo_dist.judging.workers import Reply, Send, Workers
from dpo_dist.storage.records import Ballot


class ClaudeJudge(Claude):
    """Asks `concurrency` comparisons at a time; yields ballots as they are decided."""

    def __init__(
        self,
        config: ClaudeConfig,
        form: Form = COMPARE,
        *,
        backoff_base: float = 0.5,
        timeout: float = 600,
    ) -> None:
        super().__init__(config, form)
        self._timeout = timeout  # seconds
        self._workers = Workers(
            concurrency=config.concurrency,
            backoff=Backoff(config.max_attempts, backoff_base),
            begin=lambda comparison: Exchange(self, comparison),
            connect=self._connect,
            clock=Clock(config.max_hours),
        )

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        return self._workers.ask(comparisons)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Send]:
        from anthropic import AsyncAnthropic

        # One retry policy, ours: the SDK's would retry a spent account, and wait for weeks.
        async with AsyncAnthropic(
            base_url=self.config.base_url, max_retries=0, timeout=self._timeout
        ) as client:

            async def send(request: dict[str, Any]) -> Reply:
                response = await client.messages.with_raw_response.create(**request)
                message = await response.parse()
                if getattr(message, "usage", None) is None:
                    raise NotAMessage(f"HTTP 200, but not a message: {str(message)[:80]}")
                return Reply(message, response.headers, response.headers.get("request-id", ""))

            yield send
