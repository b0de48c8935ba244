from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Checkpointing, Full, Lora
from dpo_dist.planning.memory import ModelShape, planned_peak

# SmolLM2-135M, from its model card's configuration.
SMOLLM2 = ModelShape(
    layers=30, hidden=576, heads=9, key_heads=3, head_dim=64, ffn=1536, vocabulary=49152, tied=True
)
BATCH = {"tokens": 4000, "scored": 3000}


def test_parameters_are_counted_as_the_model_counts_them(tiny_model: Path) -> None:
    assert SMOLLM2.parameters == 134_515_008
    shape = ModelShape.of(AutoConfig.from_pretrained(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert shape.parameters == model.num_parameters()


def test_lora_parameters_are_peft_s(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    shape = ModelShape.of(AutoConfig.from_pretrained(tiny_model))
    assert shape.lora_parameters(4) == model.get_nb_trainable_parameters()[0]


def test_zero_shards_what_its_stage_says() -> None:
    def plan(stage: int) -> dict[str, int]:
        return planned_peak(
            SMOLLM2, Full(), bf16=True, checkpointing="none", zero_stage=stage, processes=4, **BATCH
        )

    whole = plan(0)
    for stage, sharded in ((1, {"optimizer"}), (2, {"optimizer", "gradients"})):
        for part, size in plan(stage).items():
            assert size == (whole[part] // 4 if part in sharded else whole[part])
    assert plan(3)["weights"] == whole["weights"] // 4


@pytest.mark.parametrize("method", [Lora(), Full()])
def test_checkpointing_trades_activations_and_nothing_else(method: Lora | Full) -> None:
    none, selective, full = (
        planned_peak(SMOLLM2, method, bf16=True, checkpointing=kind, **BATCH)
        for kind in get_args(Checkpointing)
    )
    assert full["activations"] < selective["activations"] / 4 < none["activations"] / 7
    for plan in (selective, full):
        assert plan | {"activations": 0} == none | {"activations": 0}


def test_activations_follow_the_formula() -> None:
    """20h + 4h*kv/a + 8f + 4a + 8 bytes a token and layer, and 6h once, in bfloat16."""
    layer = 20 * 576 + 4 * 576 * 3 / 9 + 8 * 1536 + 4 * 9 + 8
    lora = 2 * 16 * 7  # the low-rank activations of seven modules
    expected = 4000 * (30 * (layer + lora) + 6 * 576)
    parts = planned_peak(SMOLLM2, Lora(), bf16=True, checkpointing="none", **BATCH)
    assert parts["activations"] == pytest.approx(expected, rel=1e-6)
