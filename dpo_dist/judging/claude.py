"""Claude as a judge: its requests, how its messages are read, and the online Messages API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError
from dpo_dist.judging.claude_providers import CREDENTIALS, connection, open_client
from dpo_dist.judging.dialogue import Dialogue, LanguageModel, OnlineJudge, Payload, Reply, Send
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, NotAMessage, refused_credentials
from dpo_dist.judging.rubric import CHARACTERS_PER_TOKEN, COMPARE, VERDICT_TOKENS, Form
from dpo_dist.storage.records import BallotOutcome
from dpo_dist.system.console import ANTHROPIC_KEY

if TYPE_CHECKING:
    from anthropic.types import Message, ModelInfo


SHORTEST_CACHED = 1024  # tokens; shorter prompts are not cached
# Characters per token of the densest readable text: a text that is longer than the context at this
# rate cannot fit.
MOST_CHARACTERS_PER_TOKEN = 6.0
_USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Claude(LanguageModel):
    """What both transports share: identity, check of the model, and expected usage."""

    config: ClaudeConfig

    def __init__(self, config: ClaudeConfig, form: Form = COMPARE) -> None:
        import anthropic

        # Fails now if a key, a region, a package or credentials are missing.
        connection(config)
        version = str(anthropic.Anthropic(api_key="-").default_headers["anthropic-version"])
        others = [] if config.provider == "anthropic" else [config.provider]
        super().__init__(config, form, [version, *others])
        self._context: int | None = None  # tokens

    def check(self) -> None:
        """Ask the API for the model's capabilities; an endpoint that does not list them passes, as
        those of Bedrock and Vertex."""
        import anthropic

        config = self.config
        if config.provider != "anthropic":
            return
        with anthropic.Anthropic(base_url=config.base_url, max_retries=2, timeout=60) as client:
            try:
                model = client.models.retrieve(config.model)
            except anthropic.NotFoundError as error:
                if "model" in str(error.message):
                    raise ConfigError(f"the API does not know the model {config.model}") from None
                return
            except anthropic.AuthenticationError as error:
                raise ConfigError(refused_credentials(error, ANTHROPIC_KEY)) from None
            except (anthropic.APIError, ValueError):
                return
        self._context = model.max_input_tokens
        if problem := _incapable(model, batch=config.transport == "batch"):
            raise ConfigError(f"the model {config.model} {problem}")

    def why_not_asked(self, comparison: Comparison) -> BallotOutcome | None:
        if self._context is None:
            return None
        characters = len(self.rubric) + len(self.form.question(comparison))
        too_long = characters / MOST_CHARACTERS_PER_TOKEN > self._context
        return "exceeds_context" if too_long else None

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Estimated from the number of characters."""
        if not comparisons:
            return {}
        characters = sum(len(self.form.question(comparison)) for comparison in comparisons)
        return expected_usage(
            len(comparisons),
            characters / CHARACTERS_PER_TOKEN,
            len(self.rubric) / CHARACTERS_PER_TOKEN,
            batch=self.config.transport == "batch",
        )


def expected_usage(count: int, questions: float, rubric: float, *, batch: bool) -> dict[str, int]:
    """The usage of `count` requests. `questions` are the tokens of all questions together, `rubric`
    those of the rubric, which is read from the cache after the first request."""
    system = round(rubric)
    cached = system >= SHORTEST_CACHED
    return {
        "input_tokens": round(questions) + (0 if cached else count * system),
        "cache_creation_input_tokens": system if cached else 0,
        "cache_read_input_tokens": system * (count - 1) if cached else 0,
        "output_tokens": VERDICT_TOKENS * count,
        "batch_attempts": count if batch else 0,
    }


def _incapable(model: ModelInfo, *, batch: bool) -> str | None:
    """Why the model cannot judge, or None."""
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
    """The dialogue with Claude about one comparison."""

    @property
    def request(self) -> Payload:
        judge, cached = self._judge, {"type": "ephemeral"}
        return {
            "model": judge.config.model,
            "max_tokens": self._max_tokens,
            "system": [{"type": "text", "text": judge.rubric, "cache_control": cached}],
            "messages": self._turns,
            "output_config": {"format": {"type": "json_schema", "schema": judge.form.schema}},
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


class ClaudeJudge(Claude, OnlineJudge):
    """Claude by the online Messages API."""

    def __init__(
        self,
        config: ClaudeConfig,
        form: Form = COMPARE,
        *,
        backoff_base: float = 0.5,
        timeout: float = 600,
    ) -> None:
        super().__init__(config, form)
        self._timeout = timeout  # seconds
        self.backoff = Backoff(config.max_attempts, backoff_base, CREDENTIALS[config.provider])

    def dialogue(self, comparison: Comparison) -> Exchange:
        return Exchange(self, comparison)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Send]:
        async with open_client(self.config, self._timeout) as client:

            async def send(request: Payload) -> Reply:
                response = await client.messages.with_raw_response.create(**request)
                message = await response.parse()
                if getattr(message, "usage", None) is None:
                    raise NotAMessage(f"HTTP 200, but not a message: {str(message)[:80]}")
                return Reply(message, response.headers, _request_id(response.headers))

            yield send


def _request_id(headers: Mapping[str, str]) -> str:
    """The id of a request at Anthropic or at Amazon; Google sends none."""
    return headers.get("request-id") or headers.get("x-amzn-requestid") or ""
