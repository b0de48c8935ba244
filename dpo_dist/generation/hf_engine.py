"""An engine on transformers' `generate`, for machines without vLLM."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.config import HfEngine, Sampling
from dpo_dist.data.chat import left_padded, until_end
from dpo_dist.generation.engine import Completion, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HfInProcess:
    """One model with its LoRA adapters. Batches have similar lengths and the same settings."""

    def __init__(
        self,
        config: HfEngine,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        dtype: str,
        seed: int,
        adapters: Sequence[Path],
        trust_remote_code: bool,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.manual_seed(seed)
        self._tokenizer, self._ends = tokenizer, list(ends)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        ).to(device)
        # `generate` takes missing settings, such as a repetition penalty, from the model's
        # generation_config.json; the other engines ignore that file.
        loaded.generation_config = GenerationConfig()
        self._adapters = {adapter: f"adapter-{n}" for n, adapter in enumerate(adapters)}
        if adapters:
            from peft import PeftModel

            first, *others = adapters
            loaded = PeftModel.from_pretrained(loaded, str(first), self._adapters[first])
            for adapter in others:
                loaded.load_adapter(str(adapter), self._adapters[adapter])
        self._model = loaded.eval()
        self._batch_size = config.batch_size
        self.max_model_len = config.max_model_len
        self.identity = (
            f"transformers {metadata.version('transformers')} {dtype} seed={seed} "
            f"batch={config.batch_size}"
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        ordered = sorted(requests, key=lambda r: (_batch_key(r), len(r.prompt_ids)))
        for _, group in itertools.groupby(ordered, key=_batch_key):
            members = list(group)
            for start in range(0, len(members), self._batch_size):
                yield from self._answer(members[start : start + self._batch_size])

    def _answer(self, batch: Sequence[Request]) -> list[Completion]:
        """Answer requests with the same `_batch_key`."""
        import torch

        first = batch[0]
        width = max(len(request.prompt_ids) for request in batch)
        assert width + first.max_tokens <= self.max_model_len, first.id
        pad = int(self._tokenizer.pad_token_id)
        ids, mask = left_padded([request.prompt_ids for request in batch], pad)
        witness = _LogProbs() if first.log_prob else None
        with torch.inference_mode(), self._adapter(first.adapter):
            answers = self._model.generate(
                input_ids=torch.tensor(ids, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=first.max_tokens,
                pad_token_id=pad,
                eos_token_id=self._ends,
                logits_processor=[witness] if witness else None,
                **_sampling_options(first.sampling),
            )[:, width:]
        log_probs = witness.of(answers) if witness else [None] * len(batch)
        return [
            self._completion(request, answer, by_token)
            for request, answer, by_token in zip(batch, answers.tolist(), log_probs, strict=True)
        ]

    def _adapter(self, adapter: Path | None) -> Any:
        """A context in which the model uses this adapter, or none."""
        if adapter is not None:
            self._model.set_adapter(self._adapters[adapter])
            return nullcontext()
        return self._model.disable_adapter() if self._adapters else nullcontext()

    def _completion(
        self, request: Request, answer: list[int], log_probs: list[float] | None
    ) -> Completion:
        tokens, cut_off = until_end(answer, self._ends)
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        log_prob = None if log_probs is None else sum(log_probs[: len(tokens)])
        return Completion(request.id, text, tokens, "length" if cut_off else "stop", log_prob)

    def close(self) -> None:
        del self._model


class _LogProbs:
    """A logits processor that changes nothing. `generate` calls it before temperature and filters.
    It keeps the log-probs of one step until the step's tokens are known."""

    def __init__(self) -> None:
        self._steps: list[Any] = []
        self._latest: Any = None  # (batch, vocabulary)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._latest is not None:
            self._steps.append(self._latest.gather(1, input_ids[:, -1:]))
        self._latest = scores.float().log_softmax(-1)
        return scores

    def of(self, answers: Any) -> list[list[float]]:
        """The log-prob of every token of the finished answers (batch, length)."""
        import torch

        last = self._latest.gather(1, answers[:, -1:])
        by_token: list[list[float]] = torch.cat([*self._steps, last], 1).tolist()
        return by_token


def _batch_key(request: Request) -> tuple[str, int, str, bool]:
    sampling = request.sampling.model_dump_json()
    return sampling, request.max_tokens, str(request.adapter), request.log_prob


def _sampling_options(sampling: Sampling) -> dict[str, object]:
    if sampling.temperature == 0:
        return {"do_sample": False} | dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
    # top_k=0 disables the default of `generate`, 50; vLLM's default is no limit.
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p or None,
    }
