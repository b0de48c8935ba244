"""How many requests are in flight, and when the next may start: one answer for all workers.

A refusal for too many requests is about the account, not about the request that met it: everybody
waits, and fewer go on (half as many, once per wave of refusals). Every answer brings back a part
of one; the API's own headers say when a budget is used up, before it refuses.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from dpo_dist.errors import JudgeFailed
from dpo_dist.system.background import LONGEST_WAIT

PATIENCE = 900.0  # seconds without a single answer, after which the judge gives up
_BUDGETS = ("requests", "input-tokens", "output-tokens")


class Clock:
    """The time that a judge may take for a phase, `max_hours`; None: any."""

    def __init__(self, max_hours: float | None) -> None:
        self._max_hours = max_hours
        self._end = math.inf

    def start(self) -> None:
        if self._max_hours is not None:
            self._end = time.monotonic() + 3600 * self._max_hours

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def failure(self) -> JudgeFailed:
        return JudgeFailed(
            f"max_hours {self._max_hours:g} has elapsed. Verdicts so far are kept, and batches "
            "already sent continue; run the same command again."
        )


class Throttle:
    """At most `most` requests at a time. To be made and used within one event loop."""

    def __init__(self, most: int, patience: float = PATIENCE) -> None:
        self._most = most
        self._patience = patience
        self._allowed = float(most)
        self._running = 0
        self._resume_at = 0.0
        self._last_cut = 0.0
        self._last_answer = time.monotonic()
        self._changed = asyncio.Condition()

    @property
    def allowed(self) -> int:
        """How many requests may be in flight now."""
        return max(1, int(self._allowed))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a place and for the end of a pause; yields the time at which it came."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self.allowed)
            self._running += 1
        try:
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            yield time.monotonic()
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def answered(self, headers: Mapping[str, str]) -> None:
        """A request was answered, with these headers (`anthropic-ratelimit-...`)."""
        self._last_answer = time.monotonic()
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        for budget in _BUDGETS:
            if headers.get(f"anthropic-ratelimit-{budget}-remaining") == "0":
                reset = headers.get(f"anthropic-ratelimit-{budget}-reset", "")
                self._pause(min(_seconds_until(reset), LONGEST_WAIT))

    def refused(self, started: float, seconds: float) -> None:
        """A request that started then met a limit: all wait. Raises `JudgeFailed` when nothing
        was answered for longer than the patience lasts."""
        now = time.monotonic()
        if now - self._last_answer > self._patience:
            raise JudgeFailed(
                f"the judge's API has refused every request for {self._patience / 60:.0f} minutes "
                "(rate limit). Verdicts so far are kept; run the same command again later, or "
                "lower `concurrency`."
            )
        if started >= self._last_cut:  # the others of one wave started before it
            self._last_cut = now
            self._allowed = max(1.0, self._allowed / 2)
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)


def _seconds_until(when: str) -> float:
    """Until a time in RFC 3339; 0 for what is none."""
    try:
        moment = datetime.fromisoformat(when)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
