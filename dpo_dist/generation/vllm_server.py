"""`vllm serve` behind the engine protocol: one or more servers, on this machine or on others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist.config import VllmServer as VllmServerConfig
from dpo_dist.errors import ConfigError, EngineFailed, ModelError
from dpo_dist.generation.dispatch import Dispatch, Work
from dpo_dist.generation.engine import Completion, Request, lora_rank
from dpo_dist.generation.replica import Replica, ReplicaLost, Unwell, Wanted
from dpo_dist.system.background import Put, stream
from dpo_dist.system.console import hide, warn

if TYPE_CHECKING:
    from httpx2 import AsyncClient

ANSWER_SECONDS = 600.0  # without a byte from a server: it sends an answer once it is complete
CONNECT_SECONDS = 10.0


class VllmServers:
    """Replicas of one model; base model and any of its LoRA adapters answer side by side."""

    def __init__(
        self,
        config: VllmServerConfig,
        model: str,
        *,
        adapters: Sequence[Path] = (),
        backoff_base: float = 0.5,
        patience: float = ANSWER_SECONDS,
    ) -> None:
        self._config = config
        self._backoff_base = backoff_base
        self._patience = patience
        self._key = _read_key(config.api_key_variable)
        rank = lora_rank(adapters) if adapters else 0
        self._wanted = Wanted(model, tuple(adapters), config.max_model_len, rank)
        self._replicas = [Replica(url) for url in config.urls]
        asyncio.run(self._look())
        self._fingerprints = frozenset(r.fingerprint for r in self._replicas if not r.looks)
        self.max_model_len = config.max_model_len
        self.identity = f"vllm serve: {', '.join(sorted(self._fingerprints))}"

    async def _look(self) -> None:
        """Refuse what serves something else; go on without what is not there, unless it is all."""
        async with self._client() as client:
            await asyncio.gather(*(self._look_at(client, r) for r in self._replicas))
        absent = [replica for replica in self._replicas if replica.looks]
        said = "; ".join(f"{replica.url} ({replica.reason})" for replica in absent)
        if len(absent) == len(self._replicas):
            raise ModelError(f"no server answers at {said}. Start one: {self._wanted.command()}")
        if absent:
            warn(f"no server answers at {said}; continuing without it")

    async def _look_at(self, client: AsyncClient, replica: Replica) -> None:
        import httpx2

        try:
            await replica.look(client, self._wanted)
        except (httpx2.RequestError, Unwell, ReplicaLost) as error:
            replica.looks, replica.reason = 1, f"{type(error).__name__}: {error}"
        except EngineFailed as error:
            raise ModelError(str(error)) from None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        async def answer(put: Put[Completion]) -> None:
            async with self._client() as client:
                await Dispatch(
                    self._replicas,
                    self._wanted,
                    self._fingerprints,
                    in_flight=self._config.in_flight,
                    max_attempts=self._config.max_attempts,
                    backoff_base=self._backoff_base,
                    client=client,
                    work=Work(self._fitting(requests)),
                    put=put,
                ).run()

        return _one_by_one(stream(answer))

    def _fitting(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            assert len(request.prompt_ids) + request.max_tokens <= self.max_model_len, request.id
            yield request

    def _client(self) -> AsyncClient:
        import httpx2

        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self._patience, connect=CONNECT_SECONDS),
            # The workers bound what is in flight; a limit here would be a second, hidden one.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def close(self) -> None:
        """The servers are not ours: they go on."""


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    hide(variable)
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"api_key_variable: {variable} is not set")
    return key


def _one_by_one(groups: Generator[list[Completion], None, None]) -> Iterator[Completion]:
    """The groups' completions. A consumer that stops ends what is behind the groups, too."""
    with closing(groups):
        for group in groups:
            yield from group
