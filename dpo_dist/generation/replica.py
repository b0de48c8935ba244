"""The HTTP client of one `vllm serve`.

It uses the API of vLLM 0.32: /health, /version, /v1/models, /v1/load_lora_adapter and
/v1/completions, with token ids in and out (`return_token_ids`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from dpo_dist.config import Sampling
from dpo_dist.errors import EngineFailed, ModelError
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.storage.artifacts import directory_digest

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

HEALTH_SECONDS = 30.0  # a busy server may answer /health late
OWN_ADAPTERS = "dpo_dist-"  # prefix of the names of adapters that this client loads
R = TypeVar("R", bound=BaseModel)
PROBE = Request("probe", (0,), Sampling(temperature=0), max_tokens=1)


class ServerError(Exception):
    """A failure worth a retry: HTTP 5xx or 429, or an invalid answer."""


class ReplicaLost(Exception):
    """The server is unreachable or no longer serves the model; its requests go to the others."""


@dataclass(frozen=True)
class ServerSpec:
    """What every replica must serve. The adapters have at most the rank `lora_rank`."""

    model: str
    adapters: tuple[Path, ...]
    max_model_len: int
    lora_rank: int = 0

    def command(self) -> str:
        """The command that starts such a server."""
        command = f"vllm serve {self.model} --max-model-len {self.max_model_len}"
        if not self.adapters:
            return command
        modules = [f"adapter-{n}={path.resolve()}" for n, path in enumerate(self.adapters)]
        # One more than there are adapters: on a CPU vLLM reads "no adapter" as the last index.
        return (
            f"{command} --enable-lora --max-loras {len(self.adapters) + 1} "
            f"--max-lora-rank {self.lora_rank} --lora-modules {' '.join(modules)}"
        )


class ModelCard(BaseModel):
    """An entry of /v1/models; an adapter has its model as `parent`."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None

    def serves(self, model: str) -> bool:
        """Whether its id or root is this model, or the same directory."""
        names = {name for name in (self.id, self.root) if name}
        paths = {Path(name).resolve() for name in names}
        return model in names or (Path(model).is_dir() and Path(model).resolve() in paths)


class ModelList(BaseModel):
    """The answer of /v1/models."""

    data: tuple[ModelCard, ...] = ()


class ServerVersion(BaseModel):
    """The answer of /version."""

    version: str = "unknown"


class CompletionChoice(BaseModel):
    """One answer, with token ids if the server supports `return_token_ids`."""

    text: str
    finish_reason: str | None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None


class CompletionReply(BaseModel):
    """The answer of /v1/completions to one prompt."""

    choices: tuple[CompletionChoice]
    system_fingerprint: str | None = None


@dataclass
class Replica:
    """A server at `url` (without a path). `failed_checks` counts consecutive failures, 0 for a
    healthy server; `reason` is the last one. `fingerprint` identifies its version and
    configuration. `names` maps adapters (None: the model) to their names on the server. Answers end
    at one of the tokens `ends`."""

    url: str
    failed_checks: int = 0
    reason: str = ""
    fingerprint: str = ""
    names: dict[Path | None, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    async def identify(self, client: AsyncClient, spec: ServerSpec) -> None:
        """Check the server and set `names` and `fingerprint`. Raises `ModelError` if it does not
        serve what `spec` asks for, `ServerError` or the client's errors if it is not healthy."""
        await self.check_health(client)
        cards = (await self._get(client, "/v1/models", ModelList)).data
        base = next((c for c in cards if not c.parent and c.serves(spec.model)), None)
        if base is None:
            raise ModelError(
                f"{self.url} does not serve {spec.model}, but {_list_models(cards)}. "
                f"Start it with: {spec.command()}"
            )
        context = base.max_model_len
        if context is not None and context < spec.max_model_len:
            raise ModelError(
                f"{self.url} serves {base.id} with a max_model_len of {context} tokens, but "
                f"{spec.max_model_len} are needed. Start it with: {spec.command()}"
            )
        self.names = {None: base.id}
        for adapter in spec.adapters:
            self.names[adapter] = await self._adapter(client, adapter, cards, spec)
        self.fingerprint = await self._fingerprint(client)

    async def check_health(self, client: AsyncClient) -> None:
        """Raises `ServerError` or the client's errors unless the server is healthy."""
        response = await client.get(f"{self.url}/health", timeout=HEALTH_SECONDS)
        if response.status_code != 200:
            raise ServerError(f"HTTP {response.status_code} from /health")

    async def _adapter(
        self, client: AsyncClient, adapter: Path, cards: Sequence[ModelCard], spec: ServerSpec
    ) -> str:
        """The adapter's name on the server; loads it if necessary and allowed. The name contains a
        digest of the files, so a retrained adapter is not confused with one loaded before."""
        own = f"{OWN_ADAPTERS}{directory_digest(adapter)[:12]}"
        for card in cards:
            started_with = card.parent and not card.id.startswith(OWN_ADAPTERS)
            if card.id == own or (started_with and card.serves(str(adapter))):
                return card.id
        response = await client.post(
            f"{self.url}/v1/load_lora_adapter",
            json={"lora_name": own, "lora_path": str(adapter.resolve())},
        )
        if response.status_code != 200:
            raise ModelError(
                f"{self.url} does not serve the adapter {adapter}, but {_list_models(cards)}, and "
                f"refuses to load it ({_error_text(response)}). Start it with: {spec.command()} "
                "(or with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
            )
        return own

    async def _fingerprint(self, client: AsyncClient) -> str:
        """vLLM's `system_fingerprint` (version and digest of the configuration with its dtype), or
        the version if the server hides it. The probe also checks that token ids are returned."""
        reply = await self._complete(client, PROBE)
        self._completion(PROBE, reply)
        version = (await self._get(client, "/version", ServerVersion)).version
        return reply.system_fingerprint or f"vllm-{version}"

    async def answer(self, client: AsyncClient, request: Request) -> Completion:
        """Raises `ServerError` or the client's errors if a retry may help, `EngineFailed` if it
        cannot, and `ReplicaLost` if the model is no longer served."""
        return self._completion(request, await self._complete(client, request))

    async def _complete(self, client: AsyncClient, request: Request) -> CompletionReply:
        body = completion_body(self.names[request.adapter], request, self.ends)
        response = await client.post(f"{self.url}/v1/completions", json=body)
        status = response.status_code
        if status == 404:
            raise ReplicaLost(_error_text(response))
        if 400 <= status < 500 and status not in (408, 429):
            raise EngineFailed(
                f"{self.url} refused the request {request.id}: {_error_text(response)}. Answers so "
                "far are kept."
            )
        return _parse(response, CompletionReply, "a completion")

    async def _get(self, client: AsyncClient, path: str, kind: type[R]) -> R:
        response = await client.get(self.url + path, timeout=HEALTH_SECONDS)
        if response.status_code in (401, 403):
            raise ModelError(
                f"{self.url} refused the credentials (HTTP {response.status_code}): set "
                "`api_key_variable` to the name of the variable that holds its key"
            )
        return _parse(response, kind, f"an answer of {path}")

    def _completion(self, request: Request, reply: CompletionReply) -> Completion:
        """The reply, checked against the request: prompt and token limit must be unchanged."""
        (choice,) = reply.choices
        reason, prompt, tokens = choice.finish_reason, choice.prompt_token_ids, choice.token_ids
        if reason not in ("stop", "length"):
            raise ServerError(f"the answer finished with reason {reason}")
        if tokens is None or prompt is None:
            raise EngineFailed(
                f"{self.url} does not return token ids: it needs vLLM 0.32 or newer, not behind a "
                "gateway that drops `return_token_ids`"
            )
        if prompt != request.prompt_ids:
            raise EngineFailed(
                f"{self.url} answered a different prompt than {request.id}: {len(prompt)} tokens "
                f"instead of {len(request.prompt_ids)}"
            )
        cut_off = reason == "length"
        capped = cut_off and len(tokens) < request.max_tokens
        if capped or not 1 <= len(tokens) <= request.max_tokens:
            raise EngineFailed(
                f"{self.url} returned {len(tokens)} tokens for {request.id} with finish reason "
                f"{reason}, but max_tokens is {request.max_tokens}: start it without "
                "--override-generation-config"
            )
        return Completion(request.id, choice.text, tokens, "length" if cut_off else "stop")


def completion_body(name: str, request: Request, ends: Sequence[int]) -> dict[str, JsonValue]:
    """The body for /v1/completions (vLLM's `CompletionRequest`); `name` is the served model's."""
    sampling = request.sampling
    return {
        "model": name,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
        # Explicit: the server takes missing values from the model's generation_config.json.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(ends),
        "return_token_ids": True,
        **({} if request.seed is None else {"seed": request.seed}),
    }


def _list_models(cards: Sequence[ModelCard]) -> str:
    return ", ".join(f"{card.id} ({card.root})" for card in cards) or "nothing"


def _parse(response: Response, kind: type[R], noun: str) -> R:
    """The parsed answer. Raises `ServerError` if it is not valid."""
    if response.status_code != 200:
        raise ServerError(_error_text(response))
    try:
        return kind.model_validate(response.json())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ServerError("HTTP 200, but not JSON") from None
    except ValidationError:
        raise ServerError(f"HTTP 200, but not {noun}") from None


def _error_text(response: Response) -> str:
    """The status and the server's message, shortened because it may quote the whole request."""
    try:
        body = response.json()
        message = body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, KeyError, TypeError):
        message = ""
    return f"HTTP {response.status_code} {str(message)[:200]}".strip()
