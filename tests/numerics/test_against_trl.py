"""Twenty steps of training, ours against TRL as it comes, in float32.

TRL's trainer gets our rows in our order and is otherwise its own: padded batches, a live
reference, its LM head. The losses agree to 1e-5 at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback
from trl import DPOConfig, DPOTrainer

from dpo_dist.config import Checkpointing, Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.models import choose_layout, lighten, load_policy
from dpo_dist.training.preference_trainer import PairCollator, PreferenceTrainer
from dpo_dist.training.reference import row_key
from dpo_dist.training.trainer import build_dpo_trainer, loss_arguments
from tests.numerics.pairs import random_pairs
from tests.training_jobs import training_job

STEPS = 20
CASES = [
    # method, starts from an SFT adapter, activation checkpointing, loss
    ("lora", True, "none", "sigmoid"),
    ("full", False, "full", "ipo"),
    ("full", False, "selective", "sigmoid"),
    ("lora", False, "none", {"sigmoid": 1.0, "sft": 0.5}),
    ("full", False, "none", "sigmoid"),
    ("lora", True, "full", "ipo"),
    ("lora", True, "selective", "ipo"),
]
METRICS = ("rewards/margins", "logps/chosen", "entropy", "logits/chosen", "mean_token_accuracy")


class StockTrainer(DPOTrainer):
    """TRL's, with the order of our sampler."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    _get_train_sampler = PreferenceTrainer._get_train_sampler

    def __init__(self, *args: Any, settings: Train, **kwargs: Any) -> None:
        self._settings = settings
        super().__init__(*args, **kwargs)


def rows() -> list[dict[str, Any]]:
    made = []
    for number, pair in enumerate(random_pairs(40, seed=3)):
        ids = pair.example(number)
        ids["row"] = row_key(pair.prompt, pair.chosen, pair.rejected)
        ids["tokens"] = len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        made.append(ids)
    return made


def sft_adapter(model: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def make_job(model: Path, out: Path, adapter: Path | None, settings: Train) -> TrainingJob:
    return training_job(
        out,
        settings=settings,
        model=str(model),
        adapter=adapter,
        reference_folder=out / "reference",
        seed=11,
    )


def logged(trainer: DPOTrainer) -> list[dict[str, float]]:
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_accumulation_does_not_change_the_losses(tiny_model: Path, tmp_path: Path) -> None:
    """One global batch of 4, cut into micro-batches of 4, 2 and 1. Log-probs per token are ratios
    of sums over all of it."""
    found, per_token = {}, {}
    for micro in (4, 2, 1):
        settings = Train(
            method={"type": "lora", "r": 4, "alpha": 8},
            learning_rate=5e-3,
            global_batch_size=4,
            micro_batch_size=micro,
            bf16=False,
            kl={"prompts": 0},
            save_steps=1000,
        )
        job = make_job(tiny_model, tmp_path / str(micro), None, settings)
        job.out.mkdir()
        Dataset.from_list(rows()).to_parquet(job.rows)
        lines = logged(build_dpo_trainer(job))
        found[micro] = [line["loss"] for line in lines]
        per_token[micro] = [line["logps/rejected_per_token"] for line in lines]
        assert ["rewards/accuracies" in line for line in lines] == [
            n > 0 for n in range(len(lines))
        ]
    assert per_token[1] == pytest.approx(per_token[4], abs=1e-5)
    assert abs(found[4][-1] - found[4][0]) > 1e-2
    assert found[2] == pytest.approx(found[4], abs=1e-5)
    assert found[1] == pytest.approx(found[4], abs=1e-5)


@pytest.mark.parametrize(
    ("method", "from_adapter", "checkpointing", "loss"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
)
def test_the_losses_of_twenty_steps_are_trl_s(
    method: str,
    from_adapter: bool,
    checkpointing: Checkpointing,
    loss: Any,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    adapter = sft_adapter(tiny_model, tmp_path / "sft") if from_adapter else None
    lora = {"type": "lora", "r": 4, "alpha": 8}
    settings = Train(
        method=lora if method == "lora" else {"type": "full"},
        loss=loss,
        learning_rate=5e-3 if method == "lora" else 1e-3,
        global_batch_size=4,
        micro_batch_size=2,
        bf16=False,
    )
    job = make_job(tiny_model, tmp_path, adapter, settings)
    tokenizer = load_tokenizer(str(tiny_model))
    data = Dataset.from_list(rows())

    def arguments(gradient_checkpointing: bool, **more: Any) -> DPOConfig:
        return DPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=STEPS,
            learning_rate=settings.learning_rate,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=11,
            remove_unused_columns=False,
            gradient_checkpointing=gradient_checkpointing,
            **loss_arguments(settings),
            **more,
        )

    common = {"train_dataset": data, "processing_class": tokenizer}
    model, peft_config = load_policy(job, torch.device("cpu"))
    stock = logged(
        StockTrainer(
            model=model,
            args=arguments(checkpointing != "none"),
            peft_config=peft_config,
            settings=settings,
            **common,
        )
    )
    model, peft_config = load_policy(job, torch.device("cpu"))
    trainer = PreferenceTrainer(
        job=job,
        packed=choose_layout(model, settings),
        model=model,
        args=arguments(checkpointing == "full"),
        peft_config=peft_config,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id, packed=True),
        **common,
    )
    lighten(trainer.model, job, checkpointing)
    ours = logged(trainer)
    assert len(stock) == len(ours) == STEPS
    assert abs(stock[-1]["loss"] - stock[0]["loss"]) > 1e-2, "training moved the loss"
    scale = max(1.0, abs(stock[0]["loss"]))  # IPO starts at 25
    for theirs, mine in zip(stock, ours, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5 * scale)
        for name in METRICS:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


@pytest.fixture
def own_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test's mixed precision stays its own: accelerate keeps it for the whole process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_precision")
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_live_reference_of_all_weights_rounds_as_the_policy_does(
    layout: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Under autocast, from float32 weights: before the first step the two are equal to the bit."""
    settings = Train(
        method={"type": "full"},
        learning_rate=1e-3,
        reference="live",
        layout=layout,
        global_batch_size=4,
        micro_batch_size=4,
        kl={"prompts": 0},
        save_steps=1000,
    )
    job = make_job(tiny_model, tmp_path, None, settings).model_copy(update={"dtype": "bfloat16"})
    Dataset.from_list(rows()).to_parquet(job.rows)
    first, *later = logged(build_dpo_trainer(job))
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert all(line["rewards/chosen"] != 0 for line in later[-3:])


def test_the_router_loss_is_trained_and_the_first_loss_check_leaves_it_out(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A mixture of experts with a coefficient that would hide any wrong first loss."""
    tokenizer = load_tokenizer(str(tiny_model))
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=len(tokenizer),
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=3.0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = Train(
        method={"type": "full"},
        learning_rate=1e-2,
        layout="packed",
        global_batch_size=4,
        micro_batch_size=4,
        bf16=False,
        kl={"prompts": 0},
        save_steps=1000,
    )
    job = make_job(tmp_path / "model", tmp_path, None, settings)
    Dataset.from_list(rows()).to_parquet(job.rows)
    trainer = build_dpo_trainer(job)
    router = trainer.model.model.layers[0].mlp.gate.weight
    before = router.detach().clone()
    lines = logged(trainer)
    assert lines[0]["loss"] == pytest.approx(math.log(2) + 3 * lines[0]["aux_loss"], abs=1e-4)
    assert lines[-1]["loss"] - 3 * lines[-1]["aux_loss"] < 0.6, "the rest of the loss falls"
    assert (router - before).abs().max() > 1e-3
