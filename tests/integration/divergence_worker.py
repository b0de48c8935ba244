"""What every rank of test_divergence.py runs: one measurement under ZeRO-3."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM
from trl.models.utils import prepare_deepspeed

from dpo_dist.system import ranks
from dpo_dist.training.divergence import policy_and_reference, sample_divergence, share
from dpo_dist.training.worker import end_process
from tests.tiny import make_tokenizer


def tokenizer_of_short_answers():
    """Answers end at a token that the tiny model gives often enough."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "r"
    return tokenizer


def main(policy: str, reference: str, prompts: str, out: str) -> None:
    PartialState(backend="gloo")  # without a backend Accelerate sees one CPU process
    accelerator = Accelerator()
    plugin = accelerator.state.deepspeed_plugin
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    second = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    engine, _ = accelerator.prepare(model, optimizer)
    second = prepare_deepspeed(second, accelerator)  # as TRL does with a second model
    assert not any(p.numel() for p in engine.module.parameters()), "the weights are sharded"
    found = sample_divergence(
        policy_and_reference(engine, second, accelerator),
        tokenizer_of_short_answers(),
        share(json.loads(prompts), ranks.rank(), ranks.world_size()),
        max_new_tokens=48,
        batch_size=1,
        seed=3,
    )
    gathered = gather_object(found)
    if ranks.is_main():
        Path(out).write_text(json.dumps([asdict(sequence) for sequence in gathered]))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_process(0)
