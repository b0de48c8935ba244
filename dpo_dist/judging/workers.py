"""Asking many comparisons at a time, for every judge behind an API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from dpo_dist.judging.dialogue import Dialogue
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, is_rate_limit, is_too_long
from dpo_dist.judging.throttle import Clock, Throttle
from dpo_dist.storage.records import Ballot
from dpo_dist.system.background import Put, stream


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
        """Yield ballots as they are decided. A consumer that stops early, by an error or Ctrl-C,
        cancels the requests in flight."""

        async def produce(put: Put[Ballot]) -> None:
            await self._ask_all(iter(comparisons), put)

        return stream(produce)

    async def _ask_all(self, waiting: Iterator[Comparison], put: Put[Ballot]) -> None:
        self.clock.start()
        throttle = Throttle(self.concurrency)

        async def worker(send: Send) -> None:
            while not self.clock.over and (comparison := next(waiting, None)):
                # On disk and in the ledger before another is asked.
                await put(await self._ask(send, throttle, comparison))

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
