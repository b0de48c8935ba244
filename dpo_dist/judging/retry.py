"""Retries of failed API calls, and the limit on concurrent requests.

A rate limit (HTTP 429) concerns the account, not one request: all workers pause, and the number of
concurrent requests is halved, once per wave of refusals. Every answer raises it by a fraction. The
API's headers announce an exhausted budget before it refuses.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dpo_dist.errors import JudgeFailed
from dpo_dist.system.background import LONGEST_WAIT, pause
from dpo_dist.system.console import ANTHROPIC_KEY, counted

SPENT = frozenset(
    {
        *("enforced_spend_limit_reached", "contract_spend_limit_reached"),  # anthropic
        *("insufficient_quota", "billing_hard_limit_reached"),  # openai
    }
)
TOO_LONG = ("too long", "maximum context length")  # in the error messages
_SDKS = ("anthropic", "openai")
_CREDENTIAL_PACKAGES = ("botocore", "google")  # which sign requests; a profile may expire


class NotAMessage(Exception):
    """HTTP 200 with other content, such as a proxy's page."""


@dataclass(frozen=True)
class Backoff:
    """The number of attempts and the waits between them (`pause` with `base` seconds).
    `key_variable` says in error messages what to check if the API refuses the credentials, usually
    the environment variable of its key."""

    attempts: int
    base: float = 0.5
    key_variable: str = ANTHROPIC_KEY

    def wait(self, attempt: int, error: Exception) -> float:
        """Seconds until the next attempt, after attempt number `attempt` (from 0) failed. Raises
        `JudgeFailed` for a final error and after the last attempt. Rate limits do not count as
        attempts; `Throttle` limits how long they may last."""
        retry_after = explain(error, self.key_variable)
        if attempt + 1 >= self.attempts and not is_rate_limit(error):
            raise JudgeFailed(
                f"the judge's API failed {counted(self.attempts, 'time')} in a row, most recently "
                f"with {_name(error)}. Verdicts so far are kept; run the same command again."
            ) from None
        return pause(attempt + 1, self.base) if retry_after is None else retry_after


def is_rate_limit(error: Exception) -> bool:
    """Whether the API refused because of too many requests."""
    return getattr(error, "status_code", None) == 429


def is_too_long(error: Exception) -> bool:
    """Whether the API refused because the request exceeds the model's context."""
    refused = getattr(error, "status_code", None) in (400, 413)
    return refused and any(words in str(error) for words in TOO_LONG)


def explain(error: Exception, key_variable: str = ANTHROPIC_KEY) -> float | None:
    """The server's `retry-after` in seconds, or None. Raises `JudgeFailed` for final errors.
    Handles the errors of the packages `anthropic` and `openai`, and raises all others again."""
    import httpx2

    # Both SDKs use the same class names; comparing names works if only one is installed.
    names = {k.__name__ for k in type(error).__mro__ if k.__module__.partition(".")[0] in _SDKS}
    temporary = (
        httpx2.TransportError,  # in the middle of a stream
        json.JSONDecodeError,
        UnicodeDecodeError,
        NotAMessage,
    )
    if type(error).__module__.partition(".")[0] in _CREDENTIAL_PACKAGES:
        raise JudgeFailed(
            f"the judge's credentials cannot be used ({_name(error)}). Verdicts so far are kept; "
            "renew them and run the same command again."
        ) from None
    if isinstance(error, temporary) or "APIConnectionError" in names:
        return None
    if "APIStatusError" not in names:
        raise error
    failed: Any = error
    status: int = failed.status_code
    code = getattr(error, "error_code", None) or getattr(error, "code", None)
    if code in SPENT:
        raise JudgeFailed(
            f"the judge's account has reached its spend limit ({code}). Verdicts so far are kept; "
            "raise the limit and run the same command again."
        ) from None
    if status in (401, 403):
        refused = refused_credentials(error, key_variable)
        raise JudgeFailed(f"{refused}. Verdicts so far are kept.") from None
    if status not in (408, 409, 429) and status < 500:
        raise JudgeFailed(f"the judge's API refused the request: {_name(error)}") from None
    return _retry_after(failed.response.headers.get("retry-after"))


def refused_credentials(error: Exception, key_variable: str) -> str:
    """The message for an error that refuses the API key."""
    status = getattr(error, "status_code", None)
    return f"the judge's API refused the credentials (HTTP {status}): check {key_variable}"


def _retry_after(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None  # a date: wait as without the header
    if seconds is not None and seconds > LONGEST_WAIT:
        raise JudgeFailed(
            f"the judge's API asks to retry only after {seconds:.0f} s. Verdicts so far are kept; "
            "run the same command again then."
        ) from None
    return seconds


def _name(error: Exception) -> str:
    """The error's class and message, without its request, whose headers contain the key."""
    return f"{type(error).__name__}: {getattr(error, 'message', str(error))}"


PATIENCE = 900.0  # seconds of rate limits without a single answer, after which the judge fails
_BUDGETS = ("requests", "input-tokens", "output-tokens")


class Clock:
    """The time limit `max_hours`, from the clock's creation; None: no limit."""

    def __init__(self, max_hours: float | None) -> None:
        self._max_hours = max_hours
        self._end = math.inf if max_hours is None else time.monotonic() + 3600 * max_hours

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def failure(self) -> JudgeFailed:
        return JudgeFailed(
            f"max_hours {self._max_hours:g} has elapsed. Verdicts so far are kept, and batches "
            "already sent continue; run the same command again."
        )


class Throttle:
    """Allows at most `most` concurrent requests. Create and use it in one event loop."""

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
        """The number of requests that may be in flight now."""
        return max(1, int(self._allowed))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait until a request may start, and yield the start time."""
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
        """Record an answer with its headers (`anthropic-ratelimit-...`)."""
        self._last_answer = time.monotonic()
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        for budget in _BUDGETS:
            if headers.get(f"anthropic-ratelimit-{budget}-remaining") == "0":
                reset = headers.get(f"anthropic-ratelimit-{budget}-reset", "")
                self._pause(min(_seconds_until(reset), LONGEST_WAIT))

    def refused(self, started: float, seconds: float) -> None:
        """Pause all requests after a rate limit of a request that started at `started`. Raises
        `JudgeFailed` if there was no answer for longer than `patience`."""
        now = time.monotonic()
        if now - self._last_answer > self._patience:
            raise JudgeFailed(
                f"the judge's API has refused every request for {self._patience / 60:.0f} minutes "
                "(rate limit). Verdicts so far are kept; run the same command again later, or "
                "lower `concurrency`."
            )
        if started >= self._last_cut:  # otherwise it belongs to the wave that was already counted
            self._last_cut = now
            self._allowed = max(1.0, self._allowed / 2)
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)


def _seconds_until(when: str) -> float:
    """Seconds until a time in RFC 3339; 0 for any other text."""
    try:
        moment = datetime.fromisoformat(when)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
