"""One or more `vllm serve` processes, on any machine, as an engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_dist.config import VllmServer as VllmServerConfig
from dpo_dist.errors import ConfigError, EngineFailed, ModelError
from dpo_dist.generation.dispatch import Dispatch, Work
from dpo_dist.generation.engine import Completion, Request, lora_rank
from dpo_dist.generation.replica import Replica, ReplicaLost, ServerError, ServerSpec
from dpo_dist.system.background import Put, stream
from dpo_dist.system.console import hide, warn

if TYPE_CHECKING:
    from httpx2 import AsyncClient

ANSWER_SECONDS = 600.0  # read timeout; a server sends nothing until an answer is complete
CONNECT_SECONDS = 10.0


class VllmServers:
    """Replicas of one model, each serving the base model and its LoRA adapters."""

    def __init__(
        self,
        config: VllmServerConfig,
        model: str,
        *,
        ends: Sequence[int] = (),
        adapters: Sequence[Path] = (),
        backoff_base: float = 0.5,
        patience: float = ANSWER_SECONDS,
    ) -> None:
        self._config = config
        self._backoff_base = backoff_base
        self._patience = patience
        self._key = _read_key(config.api_key_variable)
        rank = lora_rank(adapters) if adapters else 0
        self._spec = ServerSpec(model, tuple(adapters), config.max_model_len, rank)
        self._replicas = [Replica(url, ends=tuple(ends)) for url in config.urls]
        asyncio.run(self._identify_all())
        self._fingerprints = frozenset(r.fingerprint for r in self._replicas if not r.failed_checks)
        self.max_model_len = config.max_model_len
        self.identity = f"vllm serve: {', '.join(sorted(self._fingerprints))}"

    async def _identify_all(self) -> None:
        """Raises `ModelError` if a replica serves something else, or if none is reachable."""
        async with self._client() as client:
            await asyncio.gather(*(self._identify(client, r) for r in self._replicas))
        unreachable = [replica for replica in self._replicas if replica.failed_checks]
        listed = "; ".join(f"{replica.url} ({replica.reason})" for replica in unreachable)
        if len(unreachable) == len(self._replicas):
            raise ModelError(f"no server answers at {listed}. Start one: {self._spec.command()}")
        if unreachable:
            warn(f"no server answers at {listed}; continuing without it")

    async def _identify(self, client: AsyncClient, replica: Replica) -> None:
        import httpx2

        try:
            await replica.identify(client, self._spec)
        except (httpx2.RequestError, ServerError, ReplicaLost) as error:
            replica.failed_checks, replica.reason = 1, f"{type(error).__name__}: {error}"
        except EngineFailed as error:
            raise ModelError(str(error)) from None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        async def answer(put: Put[Completion]) -> None:
            async with self._client() as client:
                await Dispatch(
                    self._replicas,
                    self._spec,
                    self._fingerprints,
                    in_flight=self._config.in_flight,
                    max_attempts=self._config.max_attempts,
                    backoff_base=self._backoff_base,
                    client=client,
                    work=Work(self._fitting(requests)),
                    put=put,
                ).run()

        with closing(stream(answer)) as groups:  # cancels `answer` if the consumer stops early
            for group in groups:
                yield from group

    def _fitting(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            assert len(request.prompt_ids) + request.max_tokens <= self.max_model_len, request.id
            yield request

    def _client(self) -> AsyncClient:
        import httpx2

        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self._patience, connect=CONNECT_SECONDS),
            # `in_flight` limits the connections.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def close(self) -> None:
        """Does nothing: this process did not start the servers."""


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    hide(variable)
    if not (key := os.environ.get(variable)):
        raise ConfigError(f"api_key_variable: {variable} is not set")
    return key
