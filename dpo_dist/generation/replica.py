"""One `vllm serve`: what it says about itself, and how it is asked for an answer.

Endpoints and fields are those of vLLM 0.32: /health, /version, /v1/models, /v1/load_lora_adapter
and /v1/completions, with token ids in and out (`return_token_ids`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.config import Sampling
from dpo_dist.errors import EngineFailed, ModelError
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.storage.artifacts import directory_digest

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

HEALTH_SECONDS = 30.0  # a server whose own loop is busy may take a while to say that it is well
OWN_ADAPTERS = "dpo_dist-"
PROBE = Request("probe", (0,), Sampling(temperature=0), max_tokens=1)


class Unwell(Exception):
    """A failure that may pass: HTTP 5xx or 429, or an answer that is none."""


class ReplicaLost(Exception):
    """A server that is gone, for now at least; what it was asked goes to the others."""


@dataclass(frozen=True)
class Wanted:
    """What every replica has to serve: the model, LoRA adapters on it, and room for tokens."""

    model: str
    adapters: tuple[Path, ...]
    max_model_len: int
    lora_rank: int = 0  # of the adapters, at most

    def command(self) -> str:
        """How to start a server that serves it."""
        command = f"vllm serve {self.model} --max-model-len {self.max_model_len}"
        if not self.adapters:
            return command
        modules = [f"adapter-{n}={path.resolve()}" for n, path in enumerate(self.adapters)]
        # One place more than adapters: on a CPU vLLM reads "no adapter" as the last place.
        return (
            f"{command} --enable-lora --max-loras {len(self.adapters) + 1} "
            f"--max-lora-rank {self.lora_rank} --lora-modules {' '.join(modules)}"
        )


@dataclass
class Replica:
    """A server at `url` (without a path).

    `looks` counts how often it was not there in a row; `fingerprint` names its version and
    configuration, `names` what the model (None) and the adapters are called there.
    """

    url: str
    looks: int = 0
    reason: str = ""
    fingerprint: str = ""
    names: dict[Path | None, str] = field(default_factory=dict)

    async def look(self, client: AsyncClient, wanted: Wanted) -> None:
        """Find out who is there. Raises `ModelError` for a server that cannot serve what is
        wanted, `Unwell` or the client's errors where nobody is well."""
        await self.check_health(client)
        cards = (await self._get(client, "/v1/models")).get("data", [])
        base = next((c for c in cards if not c.get("parent") and _is(c, wanted.model)), None)
        if base is None:
            raise ModelError(
                f"{self.url} does not serve {wanted.model}, but {_served(cards)}. "
                f"Start it with: {wanted.command()}"
            )
        context = base.get("max_model_len")
        if context is not None and context < wanted.max_model_len:
            raise ModelError(
                f"{self.url} serves {base['id']} with a max_model_len of {context} tokens, but "
                f"{wanted.max_model_len} are needed. Start it with: {wanted.command()}"
            )
        self.names = {None: base["id"]}
        for adapter in wanted.adapters:
            self.names[adapter] = await self._adapter(client, adapter, cards, wanted)
        self.fingerprint = await self._fingerprint(client)

    async def check_health(self, client: AsyncClient) -> None:
        """Raises `Unwell` or the client's errors unless the server says that it is well."""
        response = await client.get(f"{self.url}/health", timeout=HEALTH_SECONDS)
        if response.status_code != 200:
            raise Unwell(f"HTTP {response.status_code} from /health")

    async def _adapter(
        self,
        client: AsyncClient,
        adapter: Path,
        cards: Sequence[dict[str, Any]],
        wanted: Wanted,
    ) -> str:
        """What the adapter is called there; it is loaded where the server allows that.

        What is loaded from here is named after the files' contents: a directory that was trained
        again is another adapter, whatever the server has loaded from it before.
        """
        own = f"{OWN_ADAPTERS}{directory_digest(adapter)[:12]}"
        for card in cards:
            started_with = card.get("parent") and not card["id"].startswith(OWN_ADAPTERS)
            if card["id"] == own or (started_with and _is(card, str(adapter))):
                return str(card["id"])
        response = await client.post(
            f"{self.url}/v1/load_lora_adapter",
            json={"lora_name": own, "lora_path": str(adapter.resolve())},
        )
        if response.status_code != 200:
            raise ModelError(
                f"{self.url} does not serve the adapter {adapter}, but {_served(cards)} and "
                f"refuses to load it ({_complaint(response)}). Start it with: {wanted.command()} "
                "(or with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
            )
        return own

    async def _fingerprint(self, client: AsyncClient) -> str:
        """Version and digest of the configuration, dtype included, as answers carry it; only the
        version where the server was told to hide it. A first answer shows that token ids come."""
        payload = await self._complete(client, PROBE)
        self._completion(PROBE, payload)
        version = (await self._get(client, "/version")).get("version", "unknown")
        return str(payload.get("system_fingerprint") or f"vllm-{version}")

    async def answer(self, client: AsyncClient, request: Request) -> Completion:
        """Raises `Unwell` or the client's errors for what may pass, `EngineFailed` for what will
        not, `ReplicaLost` where the model is no longer served."""
        return self._completion(request, await self._complete(client, request))

    async def _complete(self, client: AsyncClient, request: Request) -> dict[str, Any]:
        body = completion_body(self.names[request.adapter], request)
        response = await client.post(f"{self.url}/v1/completions", json=body)
        status = response.status_code
        if status == 404:
            raise ReplicaLost(_complaint(response))
        if 400 <= status < 500 and status not in (408, 429):
            raise EngineFailed(
                f"{self.url} refused the request {request.id}: {_complaint(response)}. Answers so "
                "far are kept."
            )
        return _json(response)

    async def _get(self, client: AsyncClient, path: str) -> dict[str, Any]:
        response = await client.get(self.url + path, timeout=HEALTH_SECONDS)
        if response.status_code in (401, 403):
            raise ModelError(
                f"{self.url} refused the credentials (HTTP {response.status_code}): set "
                "`api_key_variable` to the name of the variable that holds its key"
            )
        return _json(response)

    def _completion(self, request: Request, payload: dict[str, Any]) -> Completion:
        """The answer, held against what was asked: nothing may be added, cut or capped silently."""
        try:
            (choice,) = payload["choices"]
            reason, text = choice["finish_reason"], str(choice["text"])
            asked, tokens = choice.get("prompt_token_ids"), choice.get("token_ids")
        except (KeyError, TypeError, ValueError):
            raise Unwell("HTTP 200, but not a completion") from None
        if reason not in ("stop", "length"):
            raise Unwell(f"the answer finished with reason {reason}")
        if tokens is None or asked is None:
            raise EngineFailed(
                f"{self.url} does not return token ids: it needs vLLM 0.32 or newer, not behind a "
                "gateway that drops `return_token_ids`"
            )
        if tuple(asked) != request.prompt_ids:
            raise EngineFailed(
                f"{self.url} answered a different prompt than {request.id}: {len(asked)} tokens "
                f"instead of {len(request.prompt_ids)}"
            )
        capped = reason == "length" and len(tokens) < request.max_tokens
        if capped or not 1 <= len(tokens) <= request.max_tokens:
            raise EngineFailed(
                f"{self.url} returned {len(tokens)} tokens for {request.id} with finish reason "
                f"{reason}, but max_tokens is {request.max_tokens}: start it without "
                "--override-generation-config"
            )
        return Completion(request.id, text, tuple(tokens), reason)


def completion_body(name: str, request: Request) -> dict[str, Any]:
    """The request to /v1/completions (vLLM's `CompletionRequest`) for a model of that name."""
    sampling = request.sampling
    return {
        "model": name,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
        # The server would take what is left out from the model's generation_config.json.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
        **({} if request.seed is None else {"seed": request.seed}),
    }


def _is(card: dict[str, Any], wanted: str) -> bool:
    """Whether a card of /v1/models is that model or directory, by its name or its origin."""
    names = {name for name in (card["id"], card.get("root")) if name}
    if wanted in names:
        return True
    return Path(wanted).is_dir() and Path(wanted).resolve() in {Path(n).resolve() for n in names}


def _served(cards: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{c['id']} ({c.get('root')})" for c in cards) or "nothing"


def _json(response: Response) -> dict[str, Any]:
    """The object that a well server answers. Raises `Unwell`."""
    if response.status_code != 200:
        raise Unwell(_complaint(response))
    try:
        value = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Unwell("HTTP 200, but not JSON") from None
    if not isinstance(value, dict):
        raise Unwell("HTTP 200, but not a JSON object")
    return value


def _complaint(response: Response) -> str:
    """The status and the server's words, cut short: they may quote what it was sent."""
    try:
        said = response.json()
        words = said["error"]["message"] if "error" in said else said["detail"]
    except (ValueError, KeyError, TypeError):
        words = ""
    return f"HTTP {response.status_code} {str(words)[:200]}".strip()
