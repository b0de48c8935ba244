"""Claude as a judge, one message after the other: the Messages API."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dpo_dist.config import ClaudeJudge as ClaudeConfig
from dpo_dist.judging.claude_messages import Claude, Exchange
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, NotAMessage, is_rate_limit, is_too_long
from dpo_dist.judging.throttle import Throttle
from dpo_dist.records import Ballot

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

_Decided = queue.SimpleQueue[tuple[Ballot, asyncio.Event] | BaseException | None]


class ClaudeJudge(Claude):
    """Asks `concurrency` comparisons at a time; yields ballots as they are decided."""

    def __init__(
        self, config: ClaudeConfig, *, backoff_base: float = 0.5, timeout: float = 600
    ) -> None:
        super().__init__(config)
        self._timeout = timeout  # seconds
        self._backoff = Backoff(config.max_attempts, backoff_base)

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Run an event loop in a thread of its own and hand over what it decides.

        A consumer that stops early, by an error or Ctrl-C, cancels the requests in flight.
        """
        decided: _Decided = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._ask_all(comparisons, decided))

        def work() -> None:
            try:
                loop.run_until_complete(task)
                decided.put(None)
            except asyncio.CancelledError:
                decided.put(None)
            except BaseException as error:  # handed to the consumer, whose error it is
                decided.put(error)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := decided.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                ballot, kept = item
                yield [ballot]
                loop.call_soon_threadsafe(kept.set)
        finally:
            if thread.is_alive() and not task.done():
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _ask_all(self, comparisons: Iterable[Comparison], decided: _Decided) -> None:
        from anthropic import AsyncAnthropic

        waiting = iter(comparisons)
        throttle = Throttle(self.config.concurrency)

        async def worker(client: AsyncAnthropic) -> None:
            for comparison in waiting:
                ballot, kept = await self._ask(client, throttle, comparison), asyncio.Event()
                decided.put((ballot, kept))
                await kept.wait()  # on disk and in the ledger before another is asked

        # One retry policy, ours: the SDK's would retry a spent account, and wait for weeks.
        async with AsyncAnthropic(
            base_url=self.config.base_url, max_retries=0, timeout=self._timeout
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.config.concurrency):
                        group.create_task(worker(client))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _ask(
        self, client: AsyncAnthropic, throttle: Throttle, comparison: Comparison
    ) -> Ballot:
        """One comparison: a repair of a malformed answer and a longer try of a cut-off one."""
        exchange = Exchange(self, comparison)
        while not await self._send(client, throttle, exchange):
            pass
        return exchange.ballot()

    async def _send(self, client: AsyncAnthropic, throttle: Throttle, exchange: Exchange) -> bool:
        """Send the exchange's next message, in however many attempts; True when it decides."""
        attempt = 0
        while True:
            exchange.usage["attempts"] += 1
            pause = 0.0
            async with throttle.turn() as started:
                try:
                    response = await client.messages.with_raw_response.create(**exchange.request)
                    message = await response.parse()
                    if getattr(message, "usage", None) is None:
                        raise NotAMessage(f"HTTP 200, but no message: {str(message)[:80]}")
                except Exception as error:
                    if is_too_long(error):
                        exchange.too_long()
                        return True
                    # A failed attempt may have been billed; how much for is not known.
                    exchange.usage["attempts_with_unknown_usage"] += 1
                    pause = self._backoff.wait(attempt, error)
                    if is_rate_limit(error):
                        throttle.refused(started, pause)
                        pause = 0.0
                    attempt += 1
                else:
                    throttle.answered(response.headers)
                    return exchange.read(message, response.headers.get("request-id", ""))
            await asyncio.sleep(pause)
