"""Asking many comparisons at a time: an event loop in a thread of its own, for every judge behind
an API."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

from dpo_dist.judging.dialogue import Dialogue
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, is_rate_limit, is_too_long
from dpo_dist.judging.throttle import Clock, Throttle
from dpo_dist.records import Ballot

_Decided = queue.SimpleQueue[tuple[Ballot, asyncio.Event] | BaseException | None]


@dataclass(frozen=True)
class Reply:
    """A message as the API's own client reads it, with its HTTP headers and its id."""

    message: Any
    headers: Mapping[str, str]
    request_id: str = ""


# Sends a request's parameters; raises the SDK's errors, and `NotAMessage` for HTTP 200 without one.
Send = Callable[[dict[str, Any]], Awaitable[Reply]]


@dataclass(frozen=True)
class Workers:
    """`concurrency` workers that share one client, one throttle and one retry policy.

    `begin` opens a comparison's dialogue; `connect` is a context with the API's client open.
    After `clock` runs out nothing more is asked, and what is in flight is awaited.
    """

    concurrency: int
    backoff: Backoff
    begin: Callable[[Comparison], Dialogue]
    connect: Callable[[], AbstractAsyncContextManager[Send]]
    clock: Clock

    def ask(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
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
                with suppress(RuntimeError):  # closed: another worker has failed meanwhile
                    loop.call_soon_threadsafe(kept.set)
        finally:
            with suppress(RuntimeError):  # closed: there is nothing left to cancel
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _ask_all(self, comparisons: Iterable[Comparison], decided: _Decided) -> None:
        self.clock.start()
        waiting = iter(comparisons)
        throttle = Throttle(self.concurrency)

        async def worker(send: Send) -> None:
            while not self.clock.over and (comparison := next(waiting, None)):
                ballot, kept = await self._ask(send, throttle, comparison), asyncio.Event()
                decided.put((ballot, kept))
                await kept.wait()  # on disk and in the ledger before another is asked

        async with self.connect() as send:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.concurrency):
                        group.create_task(worker(send))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        if next(waiting, None):
            raise self.clock.failure()

    async def _ask(self, send: Send, throttle: Throttle, comparison: Comparison) -> Ballot:
        """One comparison: a repair of a malformed answer and a longer try of a cut-off one."""
        dialogue = self.begin(comparison)
        while not await self._turn(send, throttle, dialogue):
            pass
        return dialogue.ballot()

    async def _turn(self, send: Send, throttle: Throttle, dialogue: Dialogue) -> bool:
        """Send the dialogue's next message, in however many attempts; True when it decides."""
        attempt = 0
        while True:
            dialogue.usage["attempts"] += 1
            pause = 0.0
            async with throttle.turn() as started:
                try:
                    reply = await send(dialogue.request)
                except Exception as error:
                    if is_too_long(error):
                        dialogue.too_long()
                        return True
                    # A failed attempt may have been billed; how much for is not known.
                    dialogue.usage["attempts_with_unknown_usage"] += 1
                    pause = self.backoff.wait(attempt, error)
                    if is_rate_limit(error):
                        throttle.refused(started, pause)
                        pause = 0.0
                    attempt += 1
                else:
                    throttle.answered(reply.headers)
                    return dialogue.read(reply.message, reply.request_id)
            await asyncio.sleep(pause)
