"""The loss that training logs, against the equation, written out in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dpo_dist.cli import main
from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.storage.records import Message
from tests.conftest import ROOT
from tests.in_process import in_this_process

BETA = 0.1
PAIRS = [
    ("question one", "a good answer", "bad"),
    ("another, longer question", "yes", "a long and winding answer that is worse"),
    ("third", "fine", "no"),
    ("and the fourth", "well said", "wrong!"),
]


def logp(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log pi(completion | prompt): the sum over the completion's tokens, its end token included."""
    ids = torch.tensor([prompt + completion])
    logits = model(ids).logits[0].double().log_softmax(-1)  # (T, V)
    positions = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return sum(logits[t, ids[0, t + 1]] for t in positions)


def test_logged_losses_and_rewards_follow_the_equation(
    tmp_path: Path, tiny_model: Path, write_run, write_jsonl
) -> None:
    """Two steps over one batch: the second loss is that of the weights after the first step,
    so that the loss at step 2 is checked against the adapter that step 1 wrote."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    run_file = write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0},
        train={
            "beta": BETA,
            "bf16": False,
            "learning_rate": 1e-2,
            "num_epochs": 1,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "max_length": 128,
            "accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml"),
        },
    )

    def train(name: str, epochs: int) -> Path:
        overrides = (f"--set=run.name={name}", f"--set=train.num_epochs={epochs}")
        with in_this_process():
            assert main(["train", str(run_file), *overrides]) == 0
        return tmp_path / "runs" / name / "train"

    one, two = train("one", 1), train("two", 2)
    logged = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()][1]

    tokenizer = load_tokenizer(str(tiny_model))
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(one / "model")
    ).eval()
    losses, chosen_rewards, rejected_rewards = [], [], []
    with torch.no_grad():
        for prompt, chosen, rejected in PAIRS:
            messages = [Message(role="user", content=prompt)]
            rewards = []
            for text in (chosen, rejected):
                ids = completion_ids(tokenizer, messages, text)
                rewards.append(BETA * (logp(policy, *ids) - logp(reference, *ids)))
            losses.append(-torch.nn.functional.logsigmoid(rewards[0] - rewards[1]))
            chosen_rewards.append(rewards[0])
            rejected_rewards.append(rewards[1])
    mean = lambda values: float(torch.stack(values).mean())  # noqa: E731
    assert abs(mean(losses) - 0.6931) > 1e-3, "the first step moved the loss"
    assert logged["loss"] == pytest.approx(mean(losses), abs=2e-5)
    assert logged["rewards/chosen"] == pytest.approx(mean(chosen_rewards), abs=2e-5)
    assert logged["rewards/rejected"] == pytest.approx(mean(rejected_rewards), abs=2e-5)
