"""Which failures of an API call are worth another try, and when."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.throttle import LONGEST_WAIT

SPENT = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})


class NotAMessage(Exception):
    """HTTP 200 with something else in it: a proxy's page, say."""


@dataclass(frozen=True)
class Backoff:
    """Waits of `base * 2**attempt` seconds, jittered, at most `LONGEST_WAIT`."""

    attempts: int
    base: float = 0.5

    def wait(self, attempt: int, error: Exception) -> float:
        """Seconds until the next try after `attempt` (0 for the first) failed with `error`.

        Raises `JudgeFailed` when another try would be of no use. Refusals for too many requests
        are not counted: they say nothing about the request (`Throttle` has the patience).
        """
        asked = explain(error)
        if attempt + 1 >= self.attempts and not is_rate_limit(error):
            raise JudgeFailed(
                f"the judge's API failed {self.attempts} times in a row, the last time with "
                f"{_name(error)}. What was judged is kept; run the same command again."
            ) from None
        if asked is not None:
            return asked
        return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, self.base * 2.0 ** min(attempt, 16))


def is_rate_limit(error: Exception) -> bool:
    """Whether the account, not the request, has to wait."""
    return getattr(error, "status_code", None) == 429


def is_too_long(error: Exception) -> bool:
    """Whether the request was refused because it does not fit into the model's context."""
    return getattr(error, "status_code", None) in (400, 413) and "too long" in str(error)


def explain(error: Exception) -> float | None:
    """The wait that the server asks for, or None; raises `JudgeFailed` for final errors."""
    import anthropic
    import httpx2

    transient = (
        anthropic.APIConnectionError,
        httpx2.TransportError,  # in the middle of a stream
        json.JSONDecodeError,
        UnicodeDecodeError,
        NotAMessage,
    )
    if isinstance(error, transient):
        return None
    if not isinstance(error, anthropic.APIStatusError):
        raise error
    status = error.status_code
    code = getattr(error, "error_code", None)
    if code in SPENT:
        raise JudgeFailed(
            f"the judge's account has reached its spend limit ({code}). What was judged is "
            "kept; run the same command again once the limit is raised."
        ) from None
    if status in (401, 403):
        raise JudgeFailed(
            f"the judge's API refused the credentials (HTTP {status}). Check ANTHROPIC_API_KEY; "
            "what was judged is kept."
        ) from None
    if status not in (408, 409, 429) and status < 500:
        raise JudgeFailed(f"the judge's API refused the request: {_name(error)}") from None
    return _retry_after(error.response.headers.get("retry-after"))


def _retry_after(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None  # a date; the back-off serves as well
    if seconds is not None and seconds > LONGEST_WAIT:
        raise JudgeFailed(
            f"the judge's API asks for a pause of {seconds:.0f} s. What was judged is kept; "
            "run the same command again then."
        ) from None
    return seconds


def _name(error: Exception) -> str:
    """The error's kind and message; its request, whose headers hold the key, stays out."""
    return f"{type(error).__name__}: {getattr(error, 'message', str(error))}"
