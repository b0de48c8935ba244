"""Merges a LoRA adapter into its base model."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_dist.config import ChatTemplate
from dpo_dist.data.chat import load_tokenizer


def merge_adapter(
    base: str,
    adapter: Path,
    out: Path,
    *,
    dtype: str,
    template: ChatTemplate | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Save `base` with `adapter` added to its weights, and its tokenizer, in `out`. The sum is
    computed in float32 and rounded to `dtype` once. `out` is created only when it is complete."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
    )
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    partial = out.with_name(f"{out.name}.partial")
    merged.to(getattr(torch, dtype)).save_pretrained(partial)
    tokenizer = load_tokenizer(base, template, trust_remote_code=trust_remote_code)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
