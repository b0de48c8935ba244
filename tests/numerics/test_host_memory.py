"""What `estimates/host.py` takes for granted: weights in their files' dtype are mapped, not copied.

Each load runs in a process of its own, which reports its private memory (RssAnon).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WEIGHTS = """
import sys, torch
from transformers import AutoModelForCausalLM
def private():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(l.split()[1] for l in lines if l.startswith("RssAnon")))
# The first load has the libraries' own allocations.
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, use_safetensors=True)
before = private()
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[2], dtype=getattr(torch, sys.argv[3]), use_safetensors=True
)
sum(parameter.sum().item() for parameter in model.parameters())  # every page is read
print(private() - before, model.num_parameters())
"""


def saved(folder: Path, hidden: int) -> Path:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=8192,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_only_another_dtype_takes_a_copy_in_each_process(tmp_path: Path) -> None:
    small, large = saved(tmp_path / "small", 64), saved(tmp_path / "large", 1024)
    found = {}
    for dtype in ("bfloat16", "float32"):
        command = [sys.executable, "-c", WEIGHTS, str(small), str(large), dtype]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        private, weights = map(int, done.stdout.split())
        found[dtype] = private / weights  # bytes per weight
    assert found["bfloat16"] < 0.5, found  # mapped: not 2
    assert 3.5 < found["float32"] < 5, found  # copied: 4
