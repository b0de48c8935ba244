"""Claude as a judge, through the Messages API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dpo_dist.config import ClaudeJudge as ClaudeConfig
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, NotAMessage, is_rate_limit
from dpo_dist.judging.rubric import SCHEMA, JudgeAnswer, question, read_rubric
from dpo_dist.judging.throttle import Throttle
from dpo_dist.records import Ballot, BallotOutcome

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types import Message

KEY_VARIABLE = "ANTHROPIC_API_KEY"
# For the forecast alone. The models' tokenizers make a token of three to four characters of
# English; the reasoning, with what is thought before it, varies most.
CHARACTERS_A_TOKEN = 3.5
VERDICT_TOKENS = 400
SHORTEST_CACHED = 1024  # tokens; shorter prompts are not cached
_USAGE = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class ClaudeJudge:
    """Asks `concurrency` comparisons at a time; yields ballots as they are decided."""

    def __init__(self, config: ClaudeConfig, *, backoff_base: float = 0.5) -> None:
        try:
            import anthropic  # noqa: F401  # only whether it is there
        except ImportError:
            raise MissingDependency("anthropic", "cpu") from None
        if not os.environ.get(KEY_VARIABLE):
            raise ConfigError(f"the judge `claude` needs an API key: set {KEY_VARIABLE}")
        self._config = config
        self._rubric = read_rubric(config.rubric)
        self._backoff = Backoff(config.max_attempts, backoff_base)
        rules = hashlib.sha256((self._rubric + json.dumps(SCHEMA)).encode()).hexdigest()[:12]
        self.identity = f"claude:{config.model}:{rules}"

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Reckoned from the characters; the rubric is read from the cache after the first."""
        count = len(comparisons)
        if not count:
            return {}
        asked = sum(len(question(comparison)) for comparison in comparisons)
        rubric = round(len(self._rubric) / CHARACTERS_A_TOKEN)
        cached = rubric >= SHORTEST_CACHED
        return {
            "input_tokens": round(asked / CHARACTERS_A_TOKEN) + (0 if cached else count * rubric),
            "cache_creation_input_tokens": rubric if cached else 0,
            "cache_read_input_tokens": rubric * (count - 1) if cached else 0,
            "output_tokens": VERDICT_TOKENS * count,
        }

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Ballot]:
        """Run an event loop in a thread of its own and hand over what it decides.

        A consumer that stops early, by an error or Ctrl-C, cancels the requests in flight.
        """
        decided: queue.SimpleQueue[tuple[Ballot, asyncio.Event] | BaseException | None] = (
            queue.SimpleQueue()
        )
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
                yield ballot
                loop.call_soon_threadsafe(kept.set)
        finally:
            if thread.is_alive() and not task.done():
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def _ask_all(
        self,
        comparisons: Iterable[Comparison],
        decided: queue.SimpleQueue[tuple[Ballot, asyncio.Event] | BaseException | None],
    ) -> None:
        from anthropic import AsyncAnthropic

        waiting = iter(comparisons)
        throttle = Throttle(self._config.concurrency)

        async def worker(client: AsyncAnthropic) -> None:
            for comparison in waiting:
                ballot, kept = await self._ask(client, throttle, comparison), asyncio.Event()
                decided.put((ballot, kept))
                await kept.wait()  # on disk and in the ledger before another is asked

        # One retry policy, ours: the SDK's would retry a spent account, and wait for weeks.
        async with AsyncAnthropic(
            base_url=self._config.base_url, max_retries=0, timeout=600
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._config.concurrency):
                        group.create_task(worker(client))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _ask(
        self, client: AsyncAnthropic, throttle: Throttle, comparison: Comparison
    ) -> Ballot:
        """One comparison: a repair of a malformed answer and a longer try of a cut-off one."""
        turns: list[dict[str, Any]] = [{"role": "user", "content": question(comparison)}]
        usage: Counter[str] = Counter()
        max_tokens = self._config.max_tokens
        outcome: BallotOutcome = "unparsed"
        reasoning = ""
        for _ in range(2):
            message = await self._call(client, throttle, turns, max_tokens, usage)
            text = "".join(block.text for block in message.content if block.type == "text")
            if message.stop_reason == "refusal":
                category = getattr(getattr(message, "stop_details", None), "category", None)
                outcome, reasoning = "refusal", f"category: {category}"
                break
            if message.stop_reason == "max_tokens":
                outcome, reasoning = "cut_off", text
                max_tokens *= 2
                continue
            try:
                answer = JudgeAnswer.model_validate_json(text)
            except ValidationError as error:
                outcome, reasoning = "unparsed", text
                turns += [
                    {"role": "assistant", "content": text or "(empty)"},
                    {"role": "user", "content": f"Not valid: {error.errors()[0]['msg']}. Again."},
                ]
                continue
            outcome, reasoning = answer.verdict, answer.reasoning
            break
        return Ballot(
            prompt_id=comparison.prompt.id,
            first=comparison.first,
            second=comparison.second,
            outcome=outcome,
            reasoning=reasoning,
            judge=self.identity,
            usage=dict(usage),
        )

    async def _call(
        self,
        client: AsyncAnthropic,
        throttle: Throttle,
        turns: list[dict[str, Any]],
        max_tokens: int,
        usage: Counter[str],
    ) -> Message:
        """A message, however many attempts it takes; `usage` counts them all."""
        request: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": max_tokens,
            "system": [
                {"type": "text", "text": self._rubric, "cache_control": {"type": "ephemeral"}}
            ],
            "messages": turns,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        }
        attempt = 0
        while True:
            usage["attempts"] += 1
            pause = 0.0
            async with throttle.turn() as started:
                try:
                    response = await client.messages.with_raw_response.create(**request)
                    message: Message = await response.parse()
                    if getattr(message, "usage", None) is None:
                        raise NotAMessage(f"HTTP 200, but no message: {str(message)[:80]}")
                except Exception as error:
                    # A failed attempt may have been billed; how much for is not known.
                    usage["attempts_with_unknown_usage"] += 1
                    pause = self._backoff.wait(attempt, error)
                    if is_rate_limit(error):
                        throttle.refused(started, pause)
                        pause = 0.0
                    attempt += 1
                else:
                    throttle.answered(response.headers)
                    for name in _USAGE:
                        usage[name] += getattr(message.usage, name, None) or 0
                    return message
            await asyncio.sleep(pause)
