"""Fixtures of several integration tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.storage.records import Message
from tests.integration.trainings import EPOCHS, STEPS, shipped, train, variant, write_training
from tests.shared import shared_folder
from tests.tiny import make_model

ANSWERS = ("17", "xy", "23", "zz", "45", "no")


@pytest.fixture
def training_file(tmp_path: Path, tiny_model: Path) -> Path:
    """A run file that trains the tiny model for an epoch."""
    return write_training(tmp_path, tiny_model)


@pytest.fixture
def long_file(tmp_path: Path, tiny_model: Path) -> Path:
    """A run file of a training that is to be interrupted: it saves a checkpoint at every step."""
    return write_training(tmp_path, tiny_model, num_epochs=EPOCHS, save_steps=1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Path]:
    """`whole(name)` is the directory of a train phase of `EPOCHS` epochs that was not interrupted,
    with an accelerate configuration that is shipped, or with ZeRO-1 or DDP on two processes."""
    zero_1 = {"zero_stage": 1, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}

    def configuration(name: str, folder: Path) -> str:
        if name == "cpu_zero1":
            return variant(folder, "cpu_zero2", deepspeed_config=zero_1)
        if name == "cpu_ddp":
            # Without a GPU, accelerate would start a single process for MULTI_CPU.
            ddp = {"distributed_type": "MULTI_GPU", "deepspeed_config": None}
            return variant(folder, "cpu_zero2", **ddp)
        return shipped(name)

    def trained(name: str) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            run_file = write_training(folder, tiny_model, num_epochs=EPOCHS, save_steps=STEPS)
            assert train(run_file, configuration(name, folder)) == 0

        return shared_folder(tmp_path_factory, name, make) / "runs" / "test" / "train"

    return trained


@pytest.fixture(scope="session")
def taught_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that gives one of ANSWERS to any prompt, each about as often."""
    return shared_folder(tmp_path_factory, "taught", lambda folder: _teach(make_model(folder)))


def _teach(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(200):
        message = Message(role="user", content=f"teach {step}")
        rows = [completion_ids(tokenizer, [message], answer) for answer in ANSWERS]
        ids = torch.tensor([prompt + completion for prompt, completion in rows])
        labels = ids.clone()
        labels[:, : len(rows[0][0])] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
