from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_dist.config import Full, Lora
from dpo_dist.estimates import memory
from dpo_dist.estimates.hardware import preset_shape
from dpo_dist.estimates.memory import (
    ModelShape,
    activation_bytes,
    head_bytes,
    trained_parameters,
    trains_head,
)

# SmolLM2-135M, from its model card's configuration.
SMOLLM2 = ModelShape(
    layers=30, hidden=576, heads=9, key_heads=3, head_dim=64, ffn=1536, vocabulary=49152, tied=True
)
LLAMA = preset_shape("Llama-3.1-8B")


def test_parameters_are_counted_as_the_model_counts_them(tiny_model: Path) -> None:
    assert SMOLLM2.parameters == 134_515_008
    shape = ModelShape.of(AutoConfig.from_pretrained(tiny_model))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert shape.parameters == model.num_parameters()


def test_sizes_that_differ_between_layers_are_averaged() -> None:
    """The configuration of Gemma 4 raises where `head_dim` is read."""
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    config = AutoConfig.for_model(
        "gemma4_text", num_hidden_layers=4, layer_types=kinds, head_dim=32, global_head_dim=64
    )
    assert ModelShape.of(config).head_dim == 40


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"]},
        {"exclude_modules": ["down_proj"], "use_rslora": True},
    ],
)
def test_trained_parameters_are_peft_s(changes: dict[str, object], tiny_model: Path) -> None:
    from peft import get_peft_model

    from dpo_dist.training.models import lora_config

    method = Lora(r=4, **changes)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, lora_config(method))
    shape = ModelShape.of(AutoConfig.from_pretrained(tiny_model))
    assert trained_parameters(shape, method) == model.get_nb_trainable_parameters()[0]
    assert trains_head(method) == ("modules_to_save" in changes)


def test_activations_follow_the_formula() -> None:
    """20h + 4h*kv/a + 8f + 4a + 8 bytes a token and layer, and 6h once, in bfloat16."""
    layer = 20 * 576 + 4 * 576 * 3 / 9 + 8 * 1536 + 4 * 9 + 8
    lora = 2 * 16 * 7  # the low-rank activations of seven modules
    expected = 4000 * (30 * (layer + lora) + 6 * 576)
    found = activation_bytes(SMOLLM2, Lora(), tokens=4000, bf16=True, checkpointing="none")
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_head_works_in_a_tile_and_keeps_the_gradient_of_trained_weights() -> None:
    rows, head = 2**29 // (4 * 128256), 128256 * 4096
    tile, hidden = rows * 128256 * (4 + 4 + 2), 2 * 5000 * 4096 * 2
    assert head_bytes(LLAMA, Lora(), 5000) == tile + hidden
    block, gradient = 4 * 2**15 * 4096, 4 * head
    trained = tile + hidden + block + gradient
    assert head_bytes(LLAMA, Full(), 5000) == trained
    assert head_bytes(LLAMA, Lora(), 100) == 10 * 100 * 128256 + 4 * 100 * 4096
    assert head_bytes(LLAMA, Lora(), 100, bf16=False) == 8 * 100 * 128256 + 8 * 100 * 4096


def test_on_a_cpu_the_tiles_are_those_of_128_rows() -> None:
    tiles, hidden, head = 128 * 49152 * (4 + 4 + 2), 2 * 3000 * 576 * 2, 49152 * 576
    assert head_bytes(SMOLLM2, Lora(), 3000, on_cpu=True) == tiles + hidden + 4 * head
    by_logit, block = 2 * 1024 * 49152, 4 * 2**15 * 576
    trained = tiles + hidden + by_logit + block + 4 * head
    assert head_bytes(SMOLLM2, Full(), 3000, on_cpu=True) == trained


def test_the_tiles_are_those_of_the_trainer() -> None:
    from dpo_dist.training import logprobs

    assert memory.CPU_TILE_ROWS == logprobs.TILE_ROWS
    assert memory.GPU_TILE_BYTES == logprobs.TILE_BYTES
    assert memory.CPU_GRADIENT_ROWS == logprobs.HEAD_GRADIENT_ROWS
    assert memory.GRADIENT_BLOCK_ROWS == logprobs.HEAD_ROWS
