"""The run file's `args` reach the optimizer and the scheduler, and the kinds of adapters start at
the reference, are saved, merged and continued as what they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from dpo_dist.config import Model, Train
from dpo_dist.training.adapters import check_continued
from dpo_dist.training.merging import merge_adapter
from dpo_dist.training.preference_trainer import PreferenceTrainer
from dpo_dist.training.trainer import build_dpo_trainer
from tests.numerics.test_against_trl import logged, make_job, rows

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "bf16": False,
    "kl": {"prompts": 0},
    "save_steps": 1000,
}
LORA: dict[str, Any] = {"type": "lora", "r": 4, "alpha": 8}
PAIRS = 16
IDS = torch.arange(3, 43)[None]


def build(
    model: Path, out: Path, adapter: Path | None = None, **settings: Any
) -> PreferenceTrainer:
    out.mkdir()
    job = make_job(model, out, adapter, Train.model_validate(SETTINGS | settings))
    job = job.model_copy(update={"run_file": {"run": {"name": "mine"}}})
    Dataset.from_list(rows()[:PAIRS]).to_parquet(job.rows)
    return build_dpo_trainer(job)


class Watch(TrainerCallback):
    """Keeps the optimizer, and the learning rate before every step."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.rates: list[float] = []

    def on_step_begin(self, *_: object, optimizer: Any, **__: object) -> None:
        self.optimizer = optimizer
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_args_reach_optimizer_and_scheduler(tiny_model: Path, tmp_path: Path) -> None:
    args = {
        **{"lr_scheduler_type": "cosine", "warmup_ratio": 0.25, "weight_decay": 0.03},
        **{"optim": "adamw_torch", "adam_beta2": 0.9, "adam_epsilon": "1e-6"},
    }
    trainer, watch = build(tiny_model, tmp_path / "out", num_epochs=2, args=args), Watch()
    trainer.add_callback(watch)
    assert trainer.args.to_dict()["run_file"] == {"run": {"name": "mine"}}, "for the trackers"
    logged(trainer)
    (decayed, *_) = groups = watch.optimizer.param_groups
    assert {type(watch.optimizer.optimizer)} == {torch.optim.AdamW}
    assert decayed["weight_decay"] == 0.03 and decayed["params"]
    assert {(*group["betas"], group["eps"]) for group in groups} == {(0.9, 0.9, 1e-6)}
    steps, warm = 8, 2  # two epochs of 16 pairs in batches of 4
    shares = [
        step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        for step in range(steps)
    ]
    assert watch.rates == pytest.approx([1e-2 * share for share in shares], abs=1e-9)


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory) -> Path:
    """The tiny model with a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    values = model.config.to_dict() | {"tie_word_embeddings": False}
    other = type(model)(type(model.config)(**values))
    other.load_state_dict(model.state_dict())
    other.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_model / name).exists():
            (folder / name).write_bytes((tiny_model / name).read_bytes())
    return folder


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"use_dora": True},
        {"use_rslora": True, "init_lora_weights": "gaussian"},
        {"modules_to_save": ["lm_head", "embed_tokens"], "target_modules": ["q_proj", "v_proj"]},
        {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
        {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    ],
    ids=str,
)
def test_an_adapter_starts_at_the_reference_and_is_kept_as_it_is(
    kind: dict[str, Any], untied: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    trainer = build(untied, tmp_path / "first", method=LORA | kind)
    lines = logged(trainer)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(lines[-1]["loss"] - math.log(2)) > 1e-3, "it is trained"
    adapter = tmp_path / "adapter"
    trainer.save_model(str(adapter))
    base = AutoModelForCausalLM.from_pretrained(untied)
    start = log_probs(base)
    trained = log_probs(trainer.accelerator.unwrap_model(trainer.model))
    assert (trained - start).abs().max() > 1e-2
    loaded = PeftModel.from_pretrained(base, str(adapter))
    torch.testing.assert_close(log_probs(loaded), trained, atol=1e-4, rtol=0)
    merge_adapter(str(untied), adapter, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(log_probs(merged), trained, atol=1e-4, rtol=0)

    again = build(untied, tmp_path / "second", adapter, method=LORA | kind)
    check_continued(again._settings.method, adapter, Model(base=str(untied)))
    assert logged(again)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
