"""KL on the policy's own answers while the weights are sharded over ranks."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo_dist.training.divergence import Models, sample_divergence, share
from tests.conftest import ROOT
from tests.integration.divergence_worker import tokenizer_of_short_answers
from tests.tiny import make_model

# An odd number of prompts on two ranks: one comes twice.
PROMPTS = [[1, 40, 41, 42], [1, 77], [1, 9, 8, 7, 6, 5, 4], [1, 100, 200], [1, 33]] * 3


@pytest.mark.slow
def test_zero_3_measures_what_one_process_measures(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = make_model(tmp_path / "other", seed=1), tmp_path / "found.json"
    for name, value in (("DS_ACCELERATOR", "cpu"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    config = ROOT / "accelerate_configs" / "cpu_zero3.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # What transformers' Trainer fills in for "auto".
    command += ["--gradient_accumulation_steps", "1", "--gradient_clipping", "1.0"]
    command += ["--main_process_port", "0", "-m", "tests.integration.divergence_worker"]
    command += [str(tiny_model), str(other), json.dumps(PROMPTS), str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())

    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tiny_model, other)
    )
    expected = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        expected += sample_divergence(
            Models(*(functools.partial(nullcontext, m) for m in (policy, reference, policy))),
            tokenizer_of_short_answers(),
            share(PROMPTS, rank, 2),
            max_new_tokens=48,
            batch_size=1,
            seed=3,
        )
    assert len(found) == len(expected) == 16
    # With one answer a batch, a rank whose answer has ended must go on for the other's sake.
    assert any(a.tokens != b.tokens for a, b in zip(expected[:8], expected[8:], strict=True))
    for got, want in zip(found, expected, strict=True):
        assert (got["tokens"], got["cut_off"]) == (want.tokens, want.cut_off)
        assert (got["kl"], got["k3"]) == pytest.approx((want.kl, want.k3), rel=1e-4)
