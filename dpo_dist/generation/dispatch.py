"""Which replica answers what: a prompt's requests go to one, a lost replica's to the others."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_dist.errors import DpoDistError, EngineFailed, ModelError
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.generation.replica import Replica, ReplicaLost, Unwell, Wanted
from dpo_dist.system.background import Put, pause
from dpo_dist.system.console import counted, say, warn

if TYPE_CHECKING:
    from httpx2 import AsyncClient

# Between two looks at a replica that works, since some die without a word; and the longest that a
# look at a lost one may take.
LOOK_SECONDS = 30.0


@dataclass
class Item:
    """A request, and how many times it has failed."""

    request: Request
    failures: int = 0


class Work:
    """What is left to answer. To be made and used within one event loop.

    Requests are drawn from their sequence as replicas have room, the adjacent ones of a prompt
    (both slots) at once: one replica gets them, whose prefix cache then serves the second.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        groups = itertools.groupby(requests, key=lambda r: (r.prompt_ids, r.adapter))
        self._prompts = (deque(Item(request) for request in group) for _, group in groups)
        self._next = next(self._prompts, None)
        self._returned: deque[Item] = deque()
        self._left = 0  # drawn and not yet answered
        self._changed = asyncio.Event()
        self.done = asyncio.Event()
        self._check()

    async def take(self, begun: deque[Item]) -> Item | None:
        """A request for a replica, whose prompts that it has `begun` come first; waits where
        others may still give one back. None: everything is answered."""
        while not self.done.is_set():
            if not begun:
                self._draw(begun)
            if begun:
                return begun.popleft()
            await self._changed.wait()
        return None

    def _draw(self, begun: deque[Item]) -> None:
        if self._returned:
            begun.append(self._returned.popleft())
        elif self._next is not None:
            self._left += len(self._next)
            begun.extend(self._next)
            self._next = next(self._prompts, None)

    def give_back(self, items: Iterable[Item]) -> None:
        """Of a replica that will not answer them."""
        self._returned.extend(items)
        self._wake()

    def answered(self) -> None:
        self._left -= 1
        self._check()

    def _check(self) -> None:
        if self._left == 0 and self._next is None:
            self.done.set()
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def done_within(self, seconds: float) -> bool:
        """Wait for the end, but no longer than that; whether it has come."""
        try:
            async with asyncio.timeout(seconds):
                await self.done.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True)
class Dispatch:
    """Answers `work` with all replicas, `in_flight` requests at a time on each."""

    replicas: Sequence[Replica]
    wanted: Wanted
    fingerprints: frozenset[str]  # of the replicas that were there at the start
    in_flight: int
    max_attempts: int
    backoff_base: float  # seconds
    client: AsyncClient
    work: Work
    put: Put[Completion]

    async def run(self) -> None:
        """Put every completion. Raises `EngineFailed` once no replica is left, or when a request
        has failed too often."""
        try:
            async with asyncio.TaskGroup() as group:
                for replica in self.replicas:
                    group.create_task(self._serve(replica))
        except BaseExceptionGroup as failures:
            first: BaseException = failures
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _serve(self, replica: Replica) -> None:
        """A replica's part: to answer while it is well, to be looked at now and then otherwise."""
        begun: deque[Item] = deque()
        while not self.work.done.is_set():
            if replica.looks:
                await self._wait_for(replica)
                continue
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch(replica))
                    for _ in range(self.in_flight):
                        group.create_task(self._answer_some(replica, begun))
            except* ReplicaLost as lost:
                replica.looks, replica.reason = 1, str(lost.exceptions[0])
                warn(
                    f"{replica.url} is not responding ({replica.reason}); will retry it "
                    "periodically"
                )
                self.work.give_back(begun)
                begun.clear()
                self._check_any_left()

    async def _answer_some(self, replica: Replica, begun: deque[Item]) -> None:
        while (item := await self.work.take(begun)) is not None:
            try:
                completion = await self._answer(replica, item)
            except BaseException:  # failed, or cancelled as the replica is lost
                self.work.give_back([item])
                raise
            # Before the consumer has it: a replica that is lost while it waits is no reason to
            # draw the answer again.
            self.work.answered()
            await self.put(completion)

    async def _answer(self, replica: Replica, item: Item) -> Completion:
        import httpx2

        while True:
            try:
                return await replica.answer(self.client, item.request)
            except (httpx2.RequestError, Unwell) as error:
                item.failures += 1
                reason = _name(error)
            if item.failures >= self.max_attempts:
                raise EngineFailed(
                    f"the request {item.request.id} failed {counted(item.failures, 'time')}, most "
                    f"recently at {replica.url} ({reason}). Answers so far are kept; run the same "
                    "command again."
                )
            await self._check_health(replica)
            await asyncio.sleep(pause(item.failures, self.backoff_base))

    async def _watch(self, replica: Replica) -> None:
        while not await self.work.done_within(LOOK_SECONDS):
            await self._check_health(replica)

    async def _check_health(self, replica: Replica) -> None:
        import httpx2

        try:
            await replica.check_health(self.client)
        except (httpx2.RequestError, Unwell) as error:
            raise ReplicaLost(_name(error)) from None

    async def _wait_for(self, replica: Replica) -> None:
        """Wait, longer each time, and look whether a replica that was lost is there again. One
        that came back as another than before stays out: the records name what has answered."""
        import httpx2

        if await self.work.done_within(pause(replica.looks, self.backoff_base)):
            return
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await replica.look(self.client, self.wanted)
            if replica.fingerprint not in self.fingerprints:
                raise ModelError(f"{replica.url} came back as {replica.fingerprint}")
        except (httpx2.RequestError, TimeoutError, Unwell, ReplicaLost, DpoDistError) as error:
            replica.looks += 1
            replica.reason = _name(error)
            self._check_any_left()
        else:
            replica.looks = 0
            say(f"{replica.url} is back")

    def _check_any_left(self) -> None:
        if all(replica.looks >= self.max_attempts for replica in self.replicas):
            reasons = "; ".join(f"{r.url}: {r.reason}" for r in self.replicas)
            raise EngineFailed(
                f"no vLLM server is reachable ({reasons}). Answers so far are kept; start one and "
                f"run the same command again: {self.wanted.command()}"
            )


def _name(error: Exception) -> str:
    """The error in a few words; some of the client's have none of their own."""
    return str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
