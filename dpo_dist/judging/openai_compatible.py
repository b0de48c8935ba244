"""A language model as a judge behind OpenAI's chat completions: a `vllm serve` of one's own, or
any server that speaks them and can hold an answer to a JSON schema."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dpo_dist.config import OpenAiConfig
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.judging.dialogue import Dialogue
from dpo_dist.judging.judge import Comparison, Judge, rules_digest
from dpo_dist.judging.retry import Backoff, NotAMessage, refused_credentials
from dpo_dist.judging.rubric import (
    CHARACTERS_A_TOKEN,
    COMPARE,
    VERDICT_TOKENS,
    Form,
    read_rubric,
)
from dpo_dist.judging.throttle import Clock
from dpo_dist.judging.workers import Reply, Send, Workers
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import hide

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion

NO_KEY = "none"  # the client insists on a key; a server that wants none ignores it


class OpenAiJudge(Judge):
    """Asks `concurrency` comparisons at a time; yields ballots as they are decided."""

    def __init__(
        self, config: OpenAiConfig, form: Form = COMPARE, *, backoff_base: float = 0.5
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError:
            raise MissingDependency("openai", "openai") from None
        hide(config.api_key_variable)
        self.config = config
        self.form = form
        self.rubric = read_rubric(config.rubric)
        digest = rules_digest([self.rubric, form.rules(), config.temperature, config.base_url])
        self.identity = f"openai_compatible:{config.model}:{digest}"
        self._key = os.environ.get(config.api_key_variable) or NO_KEY
        self._workers = Workers(
            concurrency=config.concurrency,
            backoff=Backoff(config.max_attempts, backoff_base, config.api_key_variable),
            begin=lambda comparison: ChatExchange(self, comparison),
            connect=self._connect,
            clock=Clock(config.max_hours),
        )

    def check(self) -> None:
        """Ask the server for its models. One that has no such list is no obstacle."""
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
        context = getattr(served[config.model], "max_model_len", None)  # vLLM says so
        if context is not None and config.max_tokens >= context:
            raise ConfigError(
                f"max_tokens {config.max_tokens} leaves no room for a question: the server's "
                f"context has {context} tokens. Lower max_tokens, or serve with a higher "
                "--max-model-len."
            )

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        return self._workers.ask(comparisons)

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """Reckoned from the characters. A server that wants no key sends no bill."""
        if self._key == NO_KEY or not comparisons:
            return {}
        asked = sum(
            len(self.rubric) + len(self.form.question(comparison)) for comparison in comparisons
        )
        return {
            "input_tokens": round(asked / CHARACTERS_A_TOKEN),
            "output_tokens": VERDICT_TOKENS * len(comparisons),
        }

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Send]:
        from openai import AsyncOpenAI

        # One retry policy, ours, as with Claude.
        async with AsyncOpenAI(
            api_key=self._key, base_url=self.config.base_url, max_retries=0, timeout=600
        ) as client:

            async def send(request: dict[str, Any]) -> Reply:
                response = await client.chat.completions.with_raw_response.create(**request)
                message = response.parse()
                if not getattr(message, "choices", None):
                    raise NotAMessage(f"HTTP 200, but not a message: {str(message)[:80]}")
                return Reply(message, response.headers, response.headers.get("x-request-id", ""))

            yield send


class ChatExchange(Dialogue):
    """One comparison's course with a server of chat completions."""

    def __init__(self, judge: OpenAiJudge, comparison: Comparison) -> None:
        super().__init__(judge, comparison, judge.form, judge.config.max_tokens)
        self._config = judge.config
        self._system = {"role": "system", "content": judge.rubric}

    @property
    def request(self) -> dict[str, Any]:
        form = {"name": "verdict", "strict": True, "schema": self._form.schema}
        return {
            "model": self._config.model,
            "max_completion_tokens": self._max_tokens,
            "temperature": self._config.temperature,
            "messages": [self._system, *self._turns],
            "response_format": {"type": "json_schema", "json_schema": form},
        }

    def read(self, message: ChatCompletion, request_id: str = "") -> bool:
        if message.usage is not None:
            self.usage.update(_usage(message.usage))
        (choice,) = message.choices
        text = choice.message.content or ""
        self._begin(text, answered_by=message.model, request_id=request_id or message.id)
        if refusal := choice.message.refusal:
            self._more["reasoning"] = refusal
            return self._refused("refusal")
        if choice.finish_reason == "content_filter":
            return self._refused("content_filter")
        if choice.finish_reason == "length":
            return self._cut_off()
        return self._verdict(text)


def _usage(usage: CompletionUsage) -> dict[str, int]:
    """In the ledger's words: what the cache has served is not among `input_tokens`."""
    cached = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": cached,
    }
