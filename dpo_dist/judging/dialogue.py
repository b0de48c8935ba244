"""One comparison's course with a language model, whichever API carries it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, cast

from pydantic import ValidationError

from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.rubric import Form
from dpo_dist.storage.records import Ballot, BallotOutcome


class Dialogue(ABC):
    """A first message, and where its answer is malformed or cut off, one more.

    `request` is what to send next; `read` takes what came back and says whether that decides.
    """

    def __init__(self, judge: Judge, comparison: Comparison, form: Form, max_tokens: int) -> None:
        self.comparison = comparison
        self.usage: Counter[str] = Counter()
        self._judge = judge
        self._form = form
        self._turns: list[dict[str, Any]] = [{"role": "user", "content": form.question(comparison)}]
        self._max_tokens = max_tokens
        self._messages = 0
        self._outcome: BallotOutcome = "not_answered"
        self._more: dict[str, str] = {}

    @property
    @abstractmethod
    def request(self) -> dict[str, Any]:
        """The parameters of the next message."""

    @abstractmethod
    def read(self, message: Any, request_id: str = "") -> bool:
        """Take a message; True when it decides, False when `request` is to be sent."""

    def too_long(self) -> None:
        """The API has refused the request for its length. A second try that does not fit leaves
        the outcome of the first."""
        if not self._messages:
            self._outcome = "exceeds_context"

    def ballot(self) -> Ballot:
        return self._judge.ballot(
            self.comparison, self._outcome, usage=dict(self.usage), **self._more
        )

    def _begin(self, text: str, *, answered_by: str, request_id: str) -> None:
        """Note a message's text and origin, whatever it decides."""
        self._messages += 1
        self._more = {"reasoning": text, "answered_by": answered_by, "request_id": request_id}

    def _refused(self, category: str | None) -> bool:
        self._outcome = "refusal"
        self._more["category"] = category or "unnamed"
        return True

    def _cut_off(self) -> bool:
        """Ask once more, with twice the room."""
        self._outcome = "cut_off"
        self._max_tokens *= 2
        return self._messages > 1

    def _verdict(self, text: str) -> bool:
        """Read the judge's answer; ask once more for one that is malformed."""
        try:
            answer = self._form.answer.model_validate_json(text)
        except ValidationError as error:
            self._outcome = "unparsed"
            self._turns += [
                {"role": "assistant", "content": text or "(empty)"},
                {"role": "user", "content": f"Not valid: {error.errors()[0]['msg']}. Again."},
            ]
            return self._messages > 1
        self._outcome = cast(BallotOutcome, str(answer.verdict))
        self._more["reasoning"] = answer.reasoning
        return True
