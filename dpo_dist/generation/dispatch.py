"""Distributes requests over replicas: those of one prompt go to the same replica; if a replica is
lost, its requests go to the others."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_dist.errors import DpoDistError, EngineFailed, ModelError
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.generation.replica import Replica, ReplicaLost, ServerError, ServerSpec
from dpo_dist.system.background import Put, pause
from dpo_dist.system.console import counted, say, warn

if TYPE_CHECKING:
    from httpx2 import AsyncClient

# Seconds between two health checks of a working replica, which may hang without an error; also the
# timeout of a check of a lost one.
CHECK_SECONDS = 30.0


@dataclass
class Item:
    """A request and how often it has failed."""

    request: Request
    failures: int = 0


class Work:
    """The unanswered requests, for use within one event loop. Replicas consume them as they have
    capacity; one replica gets all adjacent requests of a prompt (its slots), which its prefix cache
    then serves."""

    def __init__(self, requests: Iterable[Request]) -> None:
        groups = itertools.groupby(requests, key=lambda r: (r.prompt_ids, r.adapter))
        self._prompts = (deque(Item(request) for request in group) for _, group in groups)
        self._next = next(self._prompts, None)
        self._given_back: deque[Item] = deque()
        self._open = 0  # taken and not yet answered
        self._changed = asyncio.Event()
        self.done = asyncio.Event()
        self._check()

    async def take(self, own: deque[Item]) -> Item | None:
        """The next request for a replica, first from its `own` queue; None if all are answered."""
        while not self.done.is_set():
            if not own and self._given_back:
                own.append(self._given_back.popleft())
            elif not own and self._next is not None:
                self._open += len(self._next)
                own.extend(self._next)
                self._next = next(self._prompts, None)
            if own:
                return own.popleft()
            await self._changed.wait()
        return None

    def give_back(self, items: Iterable[Item]) -> None:
        """Put back requests that a replica cannot answer."""
        self._given_back.extend(items)
        self._notify()

    def answered(self) -> None:
        self._open -= 1
        self._check()

    def _check(self) -> None:
        if self._open == 0 and self._next is None:
            self.done.set()
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def done_within(self, seconds: float) -> bool:
        """Wait at most that long; return whether everything is answered."""
        try:
            async with asyncio.timeout(seconds):
                await self.done.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True)
class Dispatch:
    """Answers `work` with all replicas, with up to `in_flight` concurrent requests on each."""

    replicas: Sequence[Replica]
    spec: ServerSpec
    fingerprints: frozenset[str]  # of the replicas that were reachable at the start
    in_flight: int
    max_attempts: int
    backoff_base: float  # seconds
    client: AsyncClient
    work: Work
    put: Put[Completion]

    async def run(self) -> None:
        """Raises `EngineFailed` if no replica is left or a request fails too often."""
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
        """Let a replica answer requests while it is healthy; retry it periodically otherwise."""
        own: deque[Item] = deque()
        while not self.work.done.is_set():
            if replica.failed_checks:
                await self._retry(replica)
                continue
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch(replica))
                    for _ in range(self.in_flight):
                        group.create_task(self._work_on(replica, own))
            except* ReplicaLost as lost:
                replica.failed_checks, replica.reason = 1, str(lost.exceptions[0])
                warn(f"{replica.url} is not responding ({replica.reason}); retrying periodically")
                self.work.give_back(own)
                own.clear()
                self._check_any_reachable()

    async def _work_on(self, replica: Replica, own: deque[Item]) -> None:
        while (item := await self.work.take(own)) is not None:
            try:
                completion = await self._answer(replica, item)
            except BaseException:  # failed, or cancelled because the replica is lost
                self.work.give_back([item])
                raise
            # Counted before the consumer takes it: if the replica is lost meanwhile, the request
            # must not be answered again.
            self.work.answered()
            await self.put(completion)

    async def _answer(self, replica: Replica, item: Item) -> Completion:
        import httpx2

        while True:
            try:
                return await replica.answer(self.client, item.request)
            except (httpx2.RequestError, ServerError) as error:
                item.failures += 1
                reason = _describe(error)
            if item.failures >= self.max_attempts:
                raise EngineFailed(
                    f"the request {item.request.id} failed {counted(item.failures, 'time')}, most "
                    f"recently at {replica.url} ({reason}). Answers so far are kept; run the same "
                    "command again."
                )
            await self._check_health(replica)
            await asyncio.sleep(pause(item.failures, self.backoff_base))

    async def _watch(self, replica: Replica) -> None:
        while not await self.work.done_within(CHECK_SECONDS):
            await self._check_health(replica)

    async def _check_health(self, replica: Replica) -> None:
        import httpx2

        try:
            await replica.check_health(self.client)
        except (httpx2.RequestError, ServerError) as error:
            raise ReplicaLost(_describe(error)) from None

    async def _retry(self, replica: Replica) -> None:
        """Wait with exponential backoff, then check whether a lost replica is back. If it has
        another fingerprint, it stays out: records name the servers that answered."""
        import httpx2

        if await self.work.done_within(pause(replica.failed_checks, self.backoff_base)):
            return
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await replica.identify(self.client, self.spec)
            if replica.fingerprint not in self.fingerprints:
                raise ModelError(f"{replica.url} came back as {replica.fingerprint}")
        except (httpx2.RequestError, TimeoutError, ServerError, ReplicaLost, DpoDistError) as error:
            replica.failed_checks += 1
            replica.reason = _describe(error)
            self._check_any_reachable()
        else:
            replica.failed_checks = 0
            say(f"{replica.url} is back")

    def _check_any_reachable(self) -> None:
        if all(replica.failed_checks >= self.max_attempts for replica in self.replicas):
            reasons = "; ".join(f"{r.url}: {r.reason}" for r in self.replicas)
            raise EngineFailed(
                f"no vLLM server is reachable ({reasons}). Answers so far are kept. Start a server "
                f"with `{self.spec.command()}`, and run the same command again."
            )


def _describe(error: Exception) -> str:
    """The error with its type, because some of the client's errors have no message."""
    return str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
