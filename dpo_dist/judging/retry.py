"""Which failures of an API call are worth another try, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dpo_dist.errors import JudgeFailed
from dpo_dist.system import keys
from dpo_dist.system.background import LONGEST_WAIT, pause
from dpo_dist.system.console import counted

SPENT = frozenset(
    {
        *("enforced_spend_limit_reached", "contract_spend_limit_reached"),  # anthropic
        *("insufficient_quota", "billing_hard_limit_reached"),  # openai
    }
)
TOO_LONG = ("too long", "maximum context length")
_SDKS = ("anthropic", "openai")


class NotAMessage(Exception):
    """HTTP 200 with something else in it: a proxy's page, say."""


@dataclass(frozen=True)
class Backoff:
    """How often an attempt is repeated, and the waits between (`pause` from `base` seconds).

    `key_variable` is where the API's key comes from, for what is said of refused credentials.
    """

    attempts: int
    base: float = 0.5
    key_variable: str = keys.ANTHROPIC

    def wait(self, attempt: int, error: Exception) -> float:
        """Seconds until the next try after `attempt` (0 for the first) failed with `error`.

        Raises `JudgeFailed` when another try would be of no use. Refusals for too many requests
        are not counted: they say nothing about the request (`Throttle` has the patience).
        """
        asked = explain(error, self.key_variable)
        if attempt + 1 >= self.attempts and not is_rate_limit(error):
            raise JudgeFailed(
                f"the judge's API failed {counted(self.attempts, 'time')} in a row, most recently "
                f"with {_name(error)}. Verdicts so far are kept; run the same command again."
            ) from None
        if asked is not None:
            return asked
        return pause(attempt + 1, self.base)


def is_rate_limit(error: Exception) -> bool:
    """Whether the account, not the request, has to wait."""
    return getattr(error, "status_code", None) == 429


def is_too_long(error: Exception) -> bool:
    """Whether the request was refused because it does not fit into the model's context."""
    refused = getattr(error, "status_code", None) in (400, 413)
    return refused and any(words in str(error) for words in TOO_LONG)


def explain(error: Exception, key_variable: str = keys.ANTHROPIC) -> float | None:
    """The wait that the server asks for, or None; raises `JudgeFailed` for final errors.

    The errors of the packages `anthropic` and `openai` are understood.
    """
    import httpx2

    names = _sdk_names(error)
    passing = (
        httpx2.TransportError,  # in the middle of a stream
        json.JSONDecodeError,
        UnicodeDecodeError,
        NotAMessage,
    )
    if isinstance(error, passing) or "APIConnectionError" in names:
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
        raise JudgeFailed(f"{refused}; what was judged is kept") from None
    if status not in (408, 409, 429) and status < 500:
        raise JudgeFailed(f"the judge's API refused the request: {_name(error)}") from None
    return _retry_after(failed.response.headers.get("retry-after"))


def refused_credentials(error: Exception, key_variable: str) -> str:
    """What is said of an error that refuses them."""
    status = getattr(error, "status_code", None)
    return f"the judge's API refused the credentials (HTTP {status}): check {key_variable}"


def _sdk_names(error: Exception) -> set[str]:
    """What the error is in its SDK's words. Both SDKs use the same ones, and neither has to be
    installed for the errors of the other."""
    kinds = type(error).__mro__
    return {kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] in _SDKS}


def _retry_after(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None  # a date; the back-off serves as well
    if seconds is not None and seconds > LONGEST_WAIT:
        raise JudgeFailed(
            f"the judge's API asks to retry only after {seconds:.0f} s. Verdicts so far are kept; "
            "run the same command again then."
        ) from None
    return seconds


def _name(error: Exception) -> str:
    """The error's kind and message; its request, whose headers hold the key, stays out."""
    return f"{type(error).__name__}: {getattr(error, 'message', str(error))}"
