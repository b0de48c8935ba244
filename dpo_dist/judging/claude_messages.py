"""What Claude is sent about a comparison, and how its messages read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError
from dpo_dist.judging.dialogue import Dialogue
from dpo_dist.judging.judge import Comparison, Judge, rules_digest
from dpo_dist.judging.retry import refused_credentials
from dpo_dist.judging.rubric import (
    CHARACTERS_A_TOKEN,
    COMPARE,
    VERDICT_TOKENS,
    Form,
    read_rubric,
)
from dpo_dist.storage.records import BallotOutcome
from dpo_dist.system import keys

if TYPE_CHECKING:
    from anthropic.types import Message, ModelInfo

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

    def __init__(self, config: ClaudeConfig, form: Form = COMPARE) -> None:
        import anthropic

        if not os.environ.get(keys.ANTHROPIC):
            raise ConfigError(f"the judge `claude` needs an API key: set {keys.ANTHROPIC}")
        self.config = config
        self.form = form
        self.rubric = read_rubric(config.rubric)
        version = anthropic.Anthropic(api_key="-").default_headers["anthropic-version"]
        digest = rules_digest([self.rubric, form.rules(), version])
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
                raise ConfigError(refused_credentials(error, keys.ANTHROPIC)) from None
            except (anthropic.APIError, ValueError):
                return
        self._context = model.max_input_tokens
        if problem := _incapable(model, batch=config.transport == "batch"):
            raise ConfigError(f"the model {config.model} {problem}")

    def why_not_asked(self, comparison: Comparison) -> BallotOutcome | None:
        if self._context is None:
            return None
        characters = len(self.rubric) + len(self.form.question(comparison))
        too_long = characters / MOST_CHARACTERS_A_TOKEN > self._context
        return "exceeds_context" if too_long else None

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Reckoned from the characters; the rubric is read from the cache after the first."""
        if not comparisons:
            return {}
        asked = sum(len(self.form.question(comparison)) for comparison in comparisons)
        batch = self.config.transport == "batch"
        return expected_usage(
            len(comparisons),
            asked / CHARACTERS_A_TOKEN,
            len(self.rubric) / CHARACTERS_A_TOKEN,
            batch=batch,
        )


def expected_usage(count: int, asked: float, rubric: float, *, batch: bool) -> dict[str, int]:
    """The tokens of `count` requests, whose questions have `asked` tokens together, under a rubric
    of so many."""
    rules = round(rubric)
    cached = rules >= SHORTEST_CACHED
    return {
        "input_tokens": round(asked) + (0 if cached else count * rules),
        "cache_creation_input_tokens": rules if cached else 0,
        "cache_read_input_tokens": rules * (count - 1) if cached else 0,
        "output_tokens": VERDICT_TOKENS * count,
        "batch_attempts": count if batch else 0,
    }


def _incapable(model: ModelInfo, *, batch: bool) -> str | None:
    """What the model lacks for judging."""
    if model.lifecycle == "retired":
        return "is retired"
    if model.capabilities is None:
        return None
    if not model.capabilities.structured_outputs.supported:
        return "does not support structured outputs"
    if batch and not model.capabilities.batch.supported:
        return "is not available in the batch API: use `transport: online`"
    return None


class Exchange(Dialogue):
    """One comparison's course with Claude."""

    def __init__(self, judge: Claude, comparison: Comparison) -> None:
        super().__init__(judge, comparison, judge.form, judge.config.max_tokens)
        self._claude = judge

    @property
    def request(self) -> dict[str, Any]:
        cached = {"type": "ephemeral"}
        return {
            "model": self._claude.config.model,
            "max_tokens": self._max_tokens,
            "system": [{"type": "text", "text": self._claude.rubric, "cache_control": cached}],
            "messages": self._turns,
            "output_config": {"format": {"type": "json_schema", "schema": self._form.schema}},
        }

    def read(self, message: Message, request_id: str = "") -> bool:
        for name in _USAGE:
            self.usage[name] += getattr(message.usage, name, None) or 0
        text = "".join(block.text for block in message.content if block.type == "text")
        self._begin(text, answered_by=message.model, request_id=request_id or message.id)
        match message.stop_reason:
            case "refusal":
                details = getattr(message, "stop_details", None)
                return self._refused(getattr(details, "category", None))
            case "model_context_window_exceeded":
                self._outcome = "exceeds_context"
                return True
            case "max_tokens":
                return self._cut_off()
        return self._verdict(text)
