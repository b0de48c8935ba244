"""Errors of bfloat16 log-probs against float32, with our trainer and with TRL's.

    python -m benchmarks.precision --rows FILE [--json FILE]

Computes the log-probs of eight real pairs with a LoRA model in bfloat16, as in training, and
compares them with the same model in float32: packed, with our head and LoRA layers, and padded,
with TRL's. Errors are in nats, summed over an answer; a margin is the difference between the two
answers of a pair, on which the loss depends.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from benchmarks.figures import MODEL, option_parser, publish
from benchmarks.gate import score
from benchmarks.train import tokenized
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.training import attention, layout, lora_linear
from dpo_dist.training.preference_trainer import PairCollator

PAIRS, BATCH = 8, 2


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="preference rows, .jsonl")
    parser.add_argument("--model", type=Path, default=MODEL)
    options = parser.parse_args()
    rows = tokenized(options.rows, options.model)
    random.Random(0).shuffle(rows)
    attention.register()
    exact = log_probs(options.model, rows[:PAIRS], torch.float32, ours=True)
    figures: dict[str, float] = {}
    for name in ("ours", "trl"):
        found = log_probs(options.model, rows[:PAIRS], torch.bfloat16, ours=name == "ours")
        error = found - exact
        margin = error[0] - error[1]
        for what, values in (("answer", error), ("margin", margin)):
            figures[f"{name}: {what}, mean error (nats)"] = values.abs().mean().item()
            figures[f"{name}: {what}, largest error (nats)"] = values.abs().max().item()
    publish(figures, options.json)


def log_probs(
    path: Path, rows: list[dict[str, Any]], dtype: torch.dtype, *, ours: bool
) -> torch.Tensor:
    """(2, pairs): chosen, rejected."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention.NAME if ours else "sdpa"
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # a new adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.002)
    add_fused_lm_head(model.get_base_model())
    if ours:
        layout.install(model)
        lora_linear.install(model)
    pad = load_tokenizer(str(path)).pad_token_id
    collator = PairCollator(pad_token_id=pad, packed=ours)
    found = []
    for start in range(0, len(rows), BATCH):
        half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with torch.no_grad(), half:
            scored, _ = score(model, collator(rows[start : start + BATCH]))
        found.append(scored.float().sum(1).unflatten(0, (2, -1)))
    return torch.cat(found, 1)


if __name__ == "__main__":
    main()
