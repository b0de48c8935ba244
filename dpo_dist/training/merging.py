"""A LoRA adapter written into its base: one model that needs no adapter to be served."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_dist.data.chat import load_tokenizer


def merge_adapter(
    base: str, adapter: Path, out: Path, *, dtype: str, trust_remote_code: bool = False
) -> None:
    """Save `base` with `adapter` added to its weights, and its tokenizer, under `out`.

    The sum is taken in float32 and rounded to `dtype` once. All or nothing: `out` appears when it
    is whole.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
    )
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    partial = out.with_name(f"{out.name}.partial")
    merged.to(getattr(torch, dtype)).save_pretrained(partial)
    load_tokenizer(base, trust_remote_code=trust_remote_code).save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
