"""A language model as a judge by OpenAI's chat completions: your own `vllm serve`, or any server
that supports this API with JSON schemas."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dpo_dist.config import OpenAiConfig
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.judging.dialogue import Dialogue, OnlineJudge, Payload, Reply, Send
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.retry import Backoff, NotAMessage, refused_credentials
from dpo_dist.judging.rubric import CHARACTERS_PER_TOKEN, COMPARE, VERDICT_TOKENS, Form
from dpo_dist.system.console import hide

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessage

NO_KEY = "none"  # the client requires a key; a server without keys ignores it


class OpenAiJudge(OnlineJudge):
    """A model behind a chat-completions server."""

    config: OpenAiConfig

    def __init__(
        self, config: OpenAiConfig, form: Form = COMPARE, *, backoff_base: float = 0.5
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError:
            raise MissingDependency("openai", "openai") from None
        hide(config.api_key_variable)
        super().__init__(config, form, [config.temperature, config.base_url])
        self.backoff = Backoff(config.max_attempts, backoff_base, config.api_key_variable)
        self._key = os.environ.get(config.api_key_variable) or NO_KEY

    def check(self) -> None:
        """Ask the server for its models; a server without such a list passes."""
        import openai

        config = self.config
        client = openai.OpenAI(
            api_key=self._key, base_url=config.base_url, max_retries=2, timeout=60
        )
        with client:
            try:
                served = {model.id: model for model in client.models.list()}
            except openai.APIConnectionError as error:
                raise ConfigError(
                    f"no server responds at base_url {config.base_url} ({error.__cause__}). Start "
                    "it first: vllm serve MODEL"
                ) from None
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise ConfigError(refused_credentials(error, config.api_key_variable)) from None
            except (openai.APIError, ValueError, AttributeError):
                return
        if not served:
            return
        if config.model not in served:
            raise ConfigError(
                f"{config.base_url} does not serve the model {config.model}, but "
                + ", ".join(sorted(served))
            )
        context = getattr(served[config.model], "max_model_len", None)  # vLLM reports it
        if context is not None and config.max_tokens >= context:
            raise ConfigError(
                f"max_tokens {config.max_tokens} leaves no room for a question: the server's "
                f"context has {context} tokens. Lower max_tokens, or serve with a higher "
                "--max-model-len."
            )

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Estimated from the number of characters; a server without an API key is free."""
        if self._key == NO_KEY or not comparisons:
            return {}
        characters = sum(
            len(self.rubric) + len(self.form.question(comparison)) for comparison in comparisons
        )
        return {
            "input_tokens": round(characters / CHARACTERS_PER_TOKEN),
            "output_tokens": VERDICT_TOKENS * len(comparisons),
        }

    def dialogue(self, comparison: Comparison) -> ChatExchange:
        return ChatExchange(self, comparison)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Send]:
        from openai import AsyncOpenAI

        # Only our retry policy, as for Claude.
        async with AsyncOpenAI(
            api_key=self._key, base_url=self.config.base_url, max_retries=0, timeout=600
        ) as client:

            async def send(request: Payload) -> Reply:
                response = await client.chat.completions.with_raw_response.create(**request)
                message = response.parse()
                if not getattr(message, "choices", None):
                    raise NotAMessage(f"HTTP 200, but not a message: {str(message)[:80]}")
                return Reply(message, response.headers, response.headers.get("x-request-id", ""))

            yield send


class ChatExchange(Dialogue):
    """The dialogue with a chat-completions server about one comparison."""

    def __init__(self, judge: OpenAiJudge, comparison: Comparison) -> None:
        super().__init__(judge, comparison)
        self._temperature = judge.config.temperature

    @property
    def request(self) -> Payload:
        form = {"name": "verdict", "strict": True, "schema": self._judge.form.schema}
        return {
            "model": self._judge.config.model,
            "max_completion_tokens": self._max_tokens,
            "temperature": self._temperature,
            "messages": [{"role": "system", "content": self._judge.rubric}, *self._turns],
            "response_format": {"type": "json_schema", "json_schema": form},
        }

    def read(self, message: ChatCompletion, request_id: str = "") -> bool:
        written = 0
        if usage := message.usage:
            # In the ledger's terms, `input_tokens` leaves out the tokens that the cache served, and
            # `output_tokens` includes the thought, which some servers count only in the total.
            total = getattr(usage, "total_tokens", None) or 0
            written = max(usage.completion_tokens, total - usage.prompt_tokens)
            cached = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
            self.usage["input_tokens"] += usage.prompt_tokens - cached
            self.usage["output_tokens"] += written
            self.usage["cache_read_input_tokens"] += cached
        (choice,) = message.choices
        text, thought = choice.message.content or "", _thought(choice.message)
        self._begin(text or thought, answered_by=message.model, request_id=request_id or message.id)
        if refusal := choice.message.refusal:
            self._more["reasoning"] = refusal
            return self._refused("refusal")
        if choice.finish_reason == "content_filter":
            return self._refused("content_filter")
        if choice.finish_reason == "length" or (not text and written >= self._max_tokens):
            return self._cut_off()
        return self._verdict(text)


def _thought(message: ChatCompletionMessage) -> str:
    """The text that a server with a reasoning parser keeps apart from the content; it decides
    nothing. Most servers call it `reasoning_content`; vLLM now calls it `reasoning`."""
    found = (getattr(message, name, None) for name in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str)), "")
