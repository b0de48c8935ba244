"""Random pairs and small models of several architectures, and the oracle to hold them against.

The oracle is the definition: every prompt + completion alone through the model, full logits, one
log-softmax. It shares no code with the packed path.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from dpo_dist.training import attention
from dpo_dist.training.layout import install
from dpo_dist.training.preference_trainer import PairCollator

VOCABULARY = 97
BETA = 0.1
TRL_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
    },
    "granite_swa": {"sliding_window": 8},  # attention sinks
    "minicpm3": {  # MLA: values have another size than keys
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
    },
    "gemma4_unified_text": {  # heads of two sizes
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 24,
    },
}


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def example(self, number: int) -> dict[str, Any]:
        ids = {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}
        return {"id": f"pair-{number}", **ids}


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Lengths from 1 up, longer than an attention block, with common beginnings of completions."""
    draw = random.Random(seed)

    def tokens(shortest: int, longest: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(shortest, longest))]

    pairs = [Pair(tokens(1, 1), tokens(1, 9), tokens(1, 9)), Pair(tokens(150, 150), [5], [6])]
    while len(pairs) < count:
        common = tokens(0, 12)
        pairs.append(Pair(tokens(1, 40), common + tokens(1, 30), [*common, 3, *tokens(1, 140)]))
    return pairs[:count]


def make_model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(kind, **{**sizes, **ARCHITECTURES[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    if dtype == torch.float64:
        _keep_norms_exact(model)
    add_fused_lm_head(model, outputs=TRL_OUTPUTS)
    return model.train()


def _keep_norms_exact(model: torch.nn.Module) -> None:
    """transformers' RMSNorm computes in float32 whatever its input: 1e-7 in a float64 test."""
    for module in model.modules():
        if type(module).__name__ == "Gemma2RMSNorm":
            module.forward = lambda x, m=module: _normed(x, m.eps) * (1.0 + m.weight)
        elif type(module).__name__ == "Gemma4UnifiedRMSNorm":
            module.forward = lambda x, m=module: (
                _normed(x, m.eps) * (m.weight if m.with_scale else 1)
            )
        elif type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: _normed(x, m.variance_epsilon) * m.weight


def _normed(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def packed_logps(model: Any, pairs: list[Pair], batch: dict[str, Any] | None = None) -> Any:
    """(2 * pairs,): chosen, then rejected, through the packed row."""
    attention.register()
    model.set_attn_implementation(attention.NAME)
    install(model)
    batch = dict(batch or collate(pairs))
    batch.pop("rows")
    batch.pop("witness", None)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    out = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    return out.log_probs.sum(1)


def collate(pairs: list[Pair]) -> dict[str, Any]:
    collator = PairCollator(pad_token_id=0, packed=True)
    return collator([pair.example(n) for n, pair in enumerate(pairs)])


def oracle_logps(model: Any, pairs: list[Pair]) -> torch.Tensor:
    """The same by the definition."""
    # sdpa leaves a softcap out; eager takes its softmax in float32 whatever the dtype.
    soft = getattr(model.config, "attn_logit_softcapping", None) is not None
    eager = soft or not model._supports_sdpa
    model.set_attn_implementation("eager" if eager else "sdpa")
    completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    prompts = [pair.prompt for pair in pairs] * 2
    return torch.stack([_logp(model, p, c) for p, c in zip(prompts, completions, strict=True)])


def _logp(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logits[t, ids[0, t + 1]] for t in at]).sum()


def dpo_loss(logps: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected))), the reference being uniform."""
    chosen, rejected = logps.chunk(2)
    return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
