"""The checks of the first micro-batch on a real trainer, with faults planted in it. The answers are
sampled by the transformers engine, whose log-probs are the witness."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from trl.trainer.utils import use_adapter

from dpo_dist.config import HfEngine, Sampling, Train
from dpo_dist.errors import TrainingDiverged
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.training.job import InitialReference
from dpo_dist.training.merging import merge_adapter
from dpo_dist.training.preference_trainer import PreferenceTrainer
from dpo_dist.training.reference import ReferenceLogProbs, row_key
from dpo_dist.training.reference_pass import ReferencePass
from dpo_dist.training.start_check import FirstBatch
from dpo_dist.training.trainer import build_dpo_trainer
from tests.numerics.test_against_trl import make_job, sft_adapter

LN2 = math.log(2)
PAIRS, TOKENS = 4, 100
Rows = list[dict[str, Any]]
SETTINGS: dict[str, Any] = {
    "method": {"type": "lora", "r": 4, "alpha": 8},
    "bf16": False,
    "kl": {"prompts": 0},
    "micro_batch_size": PAIRS,
}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory) -> Path:
    """A model for which the prompt matters: a small random one hardly attends to it."""
    return changed_weights(
        tiny_model, tmp_path_factory.mktemp("model") / "sensitive", lambda name, weight: 4 * weight
    )


def changed_weights(model: Path, folder: Path, change: Callable[[str, Any], Any]) -> Path:
    """A copy of the model with other projections."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "proj" in name:
            weights[name] = change(name, weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory) -> Path:
    return sft_adapter(model, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def rows(model: Path, adapter: Path) -> Rows:
    """Pairs of answers at temperatures and with filters that the witness must not know."""
    engine = build_engine(
        HfEngine(type="hf", max_model_len=256, batch_size=3),
        str(model),
        dtype="float32",
        seed=5,
        adapters=[adapter],
        seeded=False,
        trust_remote_code=False,
    )
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, 60, (PAIRS, 20), generator=draw).tolist()
    slots = (Sampling(temperature=0.8, top_k=40), Sampling(temperature=1.1, min_p=0.01))
    asked = [
        Request(f"{n}/{s}", tuple(prompt), slot, TOKENS, adapter, log_prob=True)
        for n, prompt in enumerate(prompts)
        for s, slot in enumerate(slots)
    ]
    found: dict[str, Completion] = {c.id: c for c in engine.generate(asked)}
    engine.close()
    return [row(n, prompt, found[f"{n}/0"], found[f"{n}/1"]) for n, prompt in enumerate(prompts)]


def row(number: int, prompt: list[int], chosen: Completion, rejected: Completion) -> dict[str, Any]:
    return {
        "id": f"pair-{number}",
        "row": row_key(prompt, chosen.token_ids, rejected.token_ids),
        "tokens": len(prompt) + len(chosen.token_ids) + len(rejected.token_ids),
        "prompt_ids": prompt,
        "chosen_ids": list(chosen.token_ids),
        "rejected_ids": list(rejected.token_ids),
        "chosen_witness": chosen.log_prob,
        "rejected_witness": rejected.log_prob,
    }


def build(
    model: Path, adapter: Path | None, rows: Rows, folder: Path, **changes: Any
) -> PreferenceTrainer:
    settings = Train.model_validate(SETTINGS | changes)
    if adapter is not None and settings.method.type == "full":  # as the phase does
        merge_adapter(str(model), adapter, folder / "merged", dtype="float32")
        model, adapter = folder / "merged", None
    job = make_job(model, folder, adapter, settings)
    Dataset.from_list(rows).to_parquet(job.rows)
    trainer = build_dpo_trainer(job)
    if settings.reference == "cached":
        ReferencePass(trainer).run()
    return trainer


def first_inputs(trainer: PreferenceTrainer) -> dict[str, Any]:
    return dict(trainer.data_collator([trainer.train_dataset[n] for n in range(PAIRS)]))


def first_loss(trainer: PreferenceTrainer) -> float:
    batch = first_inputs(trainer)
    return float(trainer.compute_loss(trainer.model.train(), batch).detach())


def test_the_witness_is_the_model_s_own_log_prob(model: Path, adapter: Path, rows: Rows) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    for example in rows:
        for which in ("chosen", "rejected"):
            prompt, answer = example["prompt_ids"], example[f"{which}_ids"]
            with torch.no_grad():
                logits = exact(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            by_token = logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            assert example[f"{which}_witness"] == pytest.approx(by_token.sum().item(), abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference": "live"},
        {"layout": "padded"},
        {"method": {"type": "full"}},
        {"ld_alpha": 0.5},
    ],
    ids=str,
)
def test_a_correct_start_passes(
    model: Path, adapter: Path, rows: Rows, tmp_path: Path, changes: dict[str, Any]
) -> None:
    loss = first_loss(build(model, adapter, rows, tmp_path, **changes))
    assert loss == pytest.approx(LN2, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_start_away_from_its_reference_has_the_loss_that_follows(
    model: Path, adapter: Path, rows: Rows, tmp_path: Path, method: str
) -> None:
    """A later round: the reference is the first adapter, training starts from another one. The
    witness is that of the start, and rows of the first round have none."""
    changes: dict[str, Any] = {} if method == "lora" else {"method": {"type": "full"}}
    unseen = [{**r, "chosen_witness": math.nan, "rejected_witness": math.nan} for r in rows]
    build(model, adapter, unseen, tmp_path, **changes)  # fills the reference's cache
    other = sft_adapter(model, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    moved = {name: 0.9 * w if "lora_B" in name else w for name, w in weights.items()}
    save_file(moved, other / "adapter_model.safetensors", metadata={"format": "pt"})
    start, on_top = model, other
    if method == "full":
        merge_adapter(str(model), other, tmp_path / "start", dtype="float32")
        start, on_top = tmp_path / "start", None
    job = make_job(start, tmp_path, on_top, Train.model_validate(SETTINGS | changes))
    initial = InitialReference(model=str(model), adapter=adapter, identity={})
    trainer = build_dpo_trainer(job.model_copy(update={"reference": initial, "start": {"x": 1}}))
    ReferencePass(trainer).run()
    assert abs(first_loss(trainer) - LN2) > 1e-3
    trainer._started = False
    later = FirstBatch(trainer, trainer.model, first_inputs(trainer))
    with later.recorded(trainer.model):
        trainer.compute_loss(trainer.model, first_inputs(trainer))
    with pytest.raises(TrainingDiverged, match=r"the first loss is|first reward"):
        later.check(LN2, (0.0, 0.0))


def with_dropout(trainer: PreferenceTrainer) -> None:
    for layer in trainer.model.get_base_model().model.layers:
        layer.mlp.register_forward_hook(
            lambda module, inputs, out: torch.nn.functional.dropout(out, 0.1, module.training)
        )


def without_adapter(trainer: PreferenceTrainer) -> None:
    for name, parameter in trainer.model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.zero_()


def swapped(trainer: PreferenceTrainer) -> None:
    """The stored log-probs of the first two pairs exchanged."""
    stored, (one, other, *_) = trainer.data_collator.reference, trainer.train_dataset["row"]
    stored[one], stored[other] = stored[other], stored[one]


def base_as_reference(trainer: PreferenceTrainer) -> None:
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(PAIRS)])
    batch.pop("rows"), batch.pop("witness")
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    batch = {k: v for k, v in batch.items() if not k.startswith("ref_")}
    with torch.no_grad(), use_adapter(trainer.model, None):
        out = trainer.model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    chosen, rejected = out.log_probs.sum(1).chunk(2)
    values = zip(trainer.train_dataset["row"], chosen.tolist(), rejected.tolist(), strict=True)
    for row, of_chosen, of_rejected in values:
        logps = ReferenceLogProbs(row=row, chosen=of_chosen, rejected=of_rejected)
        trainer.data_collator.reference[row] = logps


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (with_dropout, "dropout is on"),
        (without_adapter, "the adapter is off"),
        (base_as_reference, "stored log-probs .* the base instead of the SFT model"),
        (swapped, "stored log-probs .* belong to other rows"),
    ],
    ids=["dropout", "adapter off", "base as reference", "one pair swapped"],
)
def test_planted_faults_stop_the_training(
    model: Path,
    adapter: Path,
    rows: Rows,
    tmp_path: Path,
    plant: Callable[[PreferenceTrainer], None],
    message: str,
) -> None:
    trainer = build(model, adapter, rows, tmp_path)
    plant(trainer)
    with pytest.raises(TrainingDiverged, match=message):
        first_loss(trainer)


def on_another_base(model: Path, rows: Rows, folder: Path) -> tuple[Path, Rows]:
    """What PiSSA leaves behind: the adapter is right for a base from which something was moved into
    it, and is loaded on the base as it was."""
    draw = torch.Generator().manual_seed(0)

    def moved(name: str, weight: Any) -> Any:
        left = torch.randn(len(weight), 4, generator=draw)
        right = torch.randn(4, weight.shape[1], generator=draw)
        return weight + weight.std() * (left @ right).to(weight.dtype) / 2

    return changed_weights(model, folder, moved), [dict(r) for r in rows]


def with_another_template(model: Path, rows: Rows, folder: Path) -> tuple[Path, Rows]:
    """The answers as they are, after prompts that begin and end differently."""
    prompts = [[7, 9, *r["prompt_ids"][:10]] for r in rows]
    changed = [
        r | {"prompt_ids": p, "row": row_key(p, r["chosen_ids"], r["rejected_ids"])}
        for r, p in zip(rows, prompts, strict=True)
    ]
    return model, changed


@pytest.mark.parametrize("wrong", [on_another_base, with_another_template])
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_a_start_that_is_wrong_for_policy_and_reference_is_seen_by_the_witness(
    model: Path,
    adapter: Path,
    rows: Rows,
    tmp_path: Path,
    wrong: Callable[[Path, Rows, Path], tuple[Path, Rows]],
    reference: str,
) -> None:
    other, changed = wrong(model, rows, tmp_path / "other")
    with pytest.raises(TrainingDiverged, match="not the one that sampled the answers"):
        first_loss(build(other, adapter, changed, tmp_path, reference=reference))
    for blind in changed:
        blind |= {"chosen_witness": math.nan, "rejected_witness": math.nan}
    shutil.rmtree(tmp_path / "reference", ignore_errors=True)
    loss = first_loss(build(other, adapter, changed, tmp_path, reference=reference))
    assert loss == pytest.approx(LN2, abs=1e-4), "ln 2 does not see it"
