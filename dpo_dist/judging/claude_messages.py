"""What Claude is sent about a comparison, and how its messages read."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dpo_dist.config import ClaudeJudge as ClaudeConfig
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.retry import explain
from dpo_dist.judging.rubric import SCHEMA, TASK, JudgeAnswer, question, read_rubric
from dpo_dist.records import Ballot, BallotOutcome

if TYPE_CHECKING:
    from anthropic.types import Message, ModelInfo

KEY_VARIABLE = "ANTHROPIC_API_KEY"
# The models' tokenizers make a token of three to four characters of English; the reasoning, with
# what is thought before it, varies most. For the forecast.
CHARACTERS_A_TOKEN = 3.5
VERDICT_TOKENS = 400
SHORTEST_CACHED = 1024  # tokens; shorter prompts are not cached
# No text that can be read makes more tokens than this. For what cannot fit into the context.
MOST_CHARACTERS_A_TOKEN = 6.0
_USAGE = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class Claude(Judge):
    """What both transports share: who judges, by which rules, and whether it can."""

    def __init__(self, config: ClaudeConfig) -> None:
        try:
            import anthropic
        except ImportError:
            raise MissingDependency("anthropic", "cpu") from None
        if not os.environ.get(KEY_VARIABLE):
            raise ConfigError(f"the judge `claude` needs an API key: set {KEY_VARIABLE}")
        self.config = config
        self.rubric = read_rubric(config.rubric)
        version = anthropic.Anthropic(api_key="-").default_headers["anthropic-version"]
        rules = json.dumps([self.rubric, SCHEMA, TASK, version])
        digest = hashlib.sha256(rules.encode()).hexdigest()[:12]
        self.identity = f"claude:{config.model}:{digest}"
        self._context: int | None = None  # tokens

    def check(self) -> None:
        """Ask the API what the model can do. An endpoint that does not say so is no obstacle."""
        import anthropic

        config = self.config
        with anthropic.Anthropic(base_url=config.base_url, max_retries=2, timeout=60) as client:
            try:
                model = client.models.retrieve(config.model)
            except anthropic.NotFoundError as error:
                if "model" in str(error.message):
                    raise ConfigError(f"the API does not know the model {config.model}") from None
                return
            except anthropic.AuthenticationError as error:
                explain(error)
            except (anthropic.APIError, ValueError):
                return
        self._context = model.max_input_tokens
        if problem := _incapable(model, batch=config.transport == "batch"):
            raise ConfigError(f"the model {config.model} {problem}")

    def why_not_asked(self, comparison: Comparison) -> BallotOutcome | None:
        if self._context is None:
            return None
        characters = len(self.rubric) + len(question(comparison))
        too_long = characters / MOST_CHARACTERS_A_TOKEN > self._context
        return "exceeds_context" if too_long else None

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Reckoned from the characters; the rubric is read from the cache after the first."""
        count = len(comparisons)
        if not count:
            return {}
        asked = sum(len(question(comparison)) for comparison in comparisons)
        rubric = round(len(self.rubric) / CHARACTERS_A_TOKEN)
        cached = rubric >= SHORTEST_CACHED
        return {
            "input_tokens": round(asked / CHARACTERS_A_TOKEN) + (0 if cached else count * rubric),
            "cache_creation_input_tokens": rubric if cached else 0,
            "cache_read_input_tokens": rubric * (count - 1) if cached else 0,
            "output_tokens": VERDICT_TOKENS * count,
            "batch_attempts": count if self.config.transport == "batch" else 0,
        }


def _incapable(model: ModelInfo, *, batch: bool) -> str | None:
    """What the model lacks for judging."""
    if model.lifecycle == "retired":
        return "is retired"
    if model.capabilities is None:
        return None
    if not model.capabilities.structured_outputs.supported:
        return "cannot answer in a given form (structured outputs)"
    if batch and not model.capabilities.batch.supported:
        return "is not served by the batch API: use `transport: online`"
    return None


class Exchange:
    """One comparison's course: a first message, and where it is malformed or cut off, one more.

    `request` is what to send next; `read` takes what came back and says whether that decides.
    """

    def __init__(self, judge: Claude, comparison: Comparison) -> None:
        self.comparison = comparison
        self.usage: Counter[str] = Counter()
        self._judge = judge
        self._turns: list[dict[str, Any]] = [{"role": "user", "content": question(comparison)}]
        self._max_tokens = judge.config.max_tokens
        self._messages = 0
        self._outcome: BallotOutcome = "not_answered"
        self._more: dict[str, str] = {}

    @property
    def request(self) -> dict[str, Any]:
        """The parameters of the next message."""
        cached = {"type": "ephemeral"}
        return {
            "model": self._judge.config.model,
            "max_tokens": self._max_tokens,
            "system": [{"type": "text", "text": self._judge.rubric, "cache_control": cached}],
            "messages": self._turns,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        }

    def read(self, message: Message, request_id: str = "") -> bool:
        """Take a message; True when it decides, False when `request` is to be sent."""
        for name in _USAGE:
            self.usage[name] += getattr(message.usage, name, None) or 0
        self._messages += 1
        text = "".join(block.text for block in message.content if block.type == "text")
        self._more = {
            "reasoning": text,
            "answered_by": message.model,
            "request_id": request_id or message.id,
        }
        again = self._messages == 1
        match message.stop_reason:
            case "refusal":
                self._outcome = "refusal"
                details = getattr(message, "stop_details", None)
                self._more["category"] = getattr(details, "category", None) or "unnamed"
                return True
            case "model_context_window_exceeded":
                self._outcome = "exceeds_context"
                return True
            case "max_tokens":
                self._outcome = "cut_off"
                self._max_tokens *= 2
                return not again
        try:
            answer = JudgeAnswer.model_validate_json(text)
        except ValidationError as error:
            self._outcome = "unparsed"
            self._turns += [
                {"role": "assistant", "content": text or "(empty)"},
                {"role": "user", "content": f"Not valid: {error.errors()[0]['msg']}. Again."},
            ]
            return not again
        self._outcome = answer.verdict
        self._more["reasoning"] = answer.reasoning
        return True

    def too_long(self) -> None:
        """The API has refused the request for its length."""
        self._outcome = "exceeds_context"

    def ballot(self) -> Ballot:
        return self._judge.ballot(
            self.comparison, self._outcome, usage=dict(self.usage), **self._more
        )
