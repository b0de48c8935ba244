"""DPO continues only an SFT adapter of the kind that the run file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Lora, Model
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.training.adapters import check_continued
from dpo_dist.training.models import lora_config


@pytest.fixture(scope="module")
def adapter_of(tiny_model: Path, tmp_path_factory):
    """The folder of an untrained adapter with these settings."""

    def make(**settings: Any) -> Path:
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("adapter")
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        get_peft_model(base, lora_config(Lora(r=4, **settings))).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {}),
        ({"use_dora": True}, {}),
        ({"target_modules": ["v_proj", "q_proj"]}, {}),
        ({"target_modules": ["v_proj", "q_proj"]}, {"target_modules": r".*\.[qv]_proj"}),
        ({"exclude_modules": ["q_proj"]}, {}),
    ],
    ids=str,
)
def test_an_adapter_of_the_kind_passes(
    settings: dict[str, Any], wanted: dict[str, Any], adapter_of, tiny_model: Path
) -> None:
    method = Lora(r=4, **settings | wanted)
    check_continued(method, adapter_of(**settings), Model(base=str(tiny_model)))


@pytest.mark.parametrize(
    ("settings", "wanted", "message"),
    [
        ({}, {"r": 8}, r"r is 8, .*whose r is 4\. Set it to 4"),
        ({}, {"alpha": 8}, r"alpha is 8, .*whose lora_alpha is 32"),
        ({}, {"use_dora": True}, r"use_dora is true, .*Set it to false"),
        ({"use_rslora": True}, {}, r"use_rslora is false, .*Set it to true"),
        ({}, {"modules_to_save": ["norm"]}, r"modules_to_save is \[\"norm\"\], .*Set it to null"),
        ({}, {"rank_pattern": {"q_proj": 2}}, r"rank_pattern is \{\"q_proj\": 2\}"),
        ({"target_modules": ["q_proj"]}, {}, r"target_modules .*other layers"),
        ({}, {"target_modules": ["q_proj"]}, r"target_modules .*other layers"),
        ({}, {"exclude_modules": ["q_proj"]}, r"q_proj it has one"),
    ],
    ids=str,
)
def test_an_adapter_of_another_kind_is_refused(
    settings: dict[str, Any], wanted: dict[str, Any], message: str, adapter_of, tiny_model: Path
) -> None:
    folder = adapter_of(**settings)
    with pytest.raises(ConfigError, match=message):
        check_continued(Lora(**{"r": 4, **wanted}), folder, Model(base=str(tiny_model)))


def test_an_adapter_that_changed_its_base_is_refused(adapter_of, tiny_model: Path) -> None:
    folder = adapter_of()
    config = read_json(folder / "adapter_config.json")
    for change, message in (({"bias": "all"}, "bias: all"), ({"peft_type": "IA3"}, "type IA3")):
        write_json(folder / "adapter_config.json", config | change)
        with pytest.raises(ModelError, match=message):
            check_continued(Lora(r=4), folder, Model(base=str(tiny_model)))
