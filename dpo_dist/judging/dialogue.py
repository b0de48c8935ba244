"""Asks a language model about many comparisons at a time, independent of the API."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from pydantic import JsonValue, ValidationError

from dpo_dist.config import ScorerConfig
from dpo_dist.judging.judge import Comparison, Judge, rules_digest
from dpo_dist.judging.retry import Backoff, Clock, Throttle, is_rate_limit, is_too_long
from dpo_dist.judging.rubric import Form, read_rubric
from dpo_dist.storage.records import Ballot, BallotOutcome
from dpo_dist.system.background import Put, stream

Payload: TypeAlias = dict[str, Any]  # a request or a reply in the API's JSON


class LanguageModel(Judge):
    """A language model as a judge. `rules` are what affects a verdict besides rubric and form."""

    config: ScorerConfig

    def __init__(self, config: ScorerConfig, form: Form, rules: Sequence[JsonValue]) -> None:
        self.config = config
        self.form = form
        self.rubric = read_rubric(config.rubric)
        digest = rules_digest([self.rubric, form.rules(), *rules])
        self.identity = f"{config.name}:{digest}"


class Dialogue(ABC):
    """The exchange of messages about one comparison: a question, and a second one if the first
    reply is malformed or cut off. `request` is the next message to send; `read` takes the reply."""

    def __init__(self, judge: LanguageModel, comparison: Comparison) -> None:
        self.comparison = comparison
        self.usage: Counter[str] = Counter()
        self._judge = judge
        self._turns: list[Payload] = [{"role": "user", "content": judge.form.question(comparison)}]
        self._max_tokens = judge.config.max_tokens
        self._messages = 0
        self._outcome: BallotOutcome = "not_answered"
        self._more: dict[str, str] = {}

    @property
    @abstractmethod
    def request(self) -> Payload:
        """The parameters of the next request."""

    @abstractmethod
    def read(self, message: Any, request_id: str = "") -> bool:
        """Take a reply; returns False if another `request` has to be sent."""

    def too_long(self) -> None:
        """The API refused the request for its length. If this was the second request, the outcome
        of the first reply stays."""
        if not self._messages:
            self._outcome = "exceeds_context"

    def ballot(self) -> Ballot:
        return self._judge.ballot(
            self.comparison, self._outcome, usage=dict(self.usage), **self._more
        )

    def _begin(self, text: str, *, answered_by: str, request_id: str) -> None:
        """Store a reply's text and origin."""
        self._messages += 1
        self._more = {"reasoning": text, "answered_by": answered_by, "request_id": request_id}

    def _refused(self, category: str | None) -> bool:
        self._outcome = "refusal"
        self._more["category"] = category or "unnamed"
        return True

    def _cut_off(self) -> bool:
        """Ask a second time, with twice the `max_tokens`."""
        self._outcome = "cut_off"
        self._max_tokens *= 2
        return self._messages > 1

    def _verdict(self, text: str) -> bool:
        """Read the verdict; ask a second time if the reply is malformed."""
        try:
            answer = self._judge.form.answer.model_validate_json(text)
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


@dataclass(frozen=True)
class Reply:
    """A message as the API's client parses it, with the HTTP headers and the request's id."""

    message: Any
    headers: Mapping[str, str]
    request_id: str = ""


# Sends a request; raises the SDK's errors, and `NotAMessage` for HTTP 200 without a message.
Send = Callable[[Payload], Awaitable[Reply]]


class OnlineJudge(LanguageModel):
    """Asks `config.concurrency` comparisons at a time, with one client, one throttle and one retry
    policy. After `config.max_hours` no further comparison is asked, and requests in flight are
    awaited."""

    backoff: Backoff

    @abstractmethod
    def dialogue(self, comparison: Comparison) -> Dialogue:
        """Start the dialogue about a comparison."""

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Send]:
        """Open the API's client."""

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Yield ballots as they are decided. If the consumer stops early, by an error or Ctrl-C,
        the requests in flight are cancelled."""

        async def produce(put: Put[Ballot]) -> None:
            await self._ask_all(iter(comparisons), put)

        return stream(produce)

    async def _ask_all(self, waiting: Iterator[Comparison], put: Put[Ballot]) -> None:
        clock, throttle = Clock(self.config.max_hours), Throttle(self.config.concurrency)

        async def worker(send: Send) -> None:
            while not clock.over and (comparison := next(waiting, None)):
                dialogue = self.dialogue(comparison)
                while not await self._turn(send, throttle, dialogue):
                    pass
                # Returns once the ballot is on disk and in the ledger.
                await put(dialogue.ballot())

        async with self.connect() as send:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.config.concurrency):
                        group.create_task(worker(send))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        if next(waiting, None):
            raise clock.failure()

    async def _turn(self, send: Send, throttle: Throttle, dialogue: Dialogue) -> bool:
        """Send the dialogue's next request, with retries; returns whether the dialogue is over."""
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
                    # A failed attempt may have been billed; for how many tokens is unknown.
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
