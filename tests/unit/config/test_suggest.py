"""Suggestions for keys and values that users of other tools write."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.config.suggest import ALIASES, VALUES, key_hint
from dpo_dist.errors import ConfigError

MINIMAL = {"model": {"base": "m"}, "preferences": {"source": "path", "path": "p.jsonl"}}
SAMPLE = {"prompts": {"path": "p"}, "engine": {"type": "hf"}}


def hint(write_run, sections: dict) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(write_run(**{**MINIMAL, **sections}))
    return str(error.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        # From the section at hand.
        ({"train": {"betta": 1}}, "train.betta: unknown key; did you mean `beta`?"),
        ({"train": {"Beta": 1}}, "train.Beta: unknown key; did you mean `beta`?"),
        ({"train": {"num-epochs": 1}}, "; did you mean `num_epochs`?"),
        ({"trian": {}}, "trian: unknown key; did you mean `train`?"),
        (
            {"train": {"kl": {"budgett": 1}}},
            "train.kl.budgett: unknown key; did you mean `budget`?",
        ),
        (
            {"sample": {**SAMPLE, "slots": [{"temprature": 1}, {}]}},
            "sample.slots.0.temprature: unknown key; did you mean `temperature`?",
        ),
        (
            {"sample": {**SAMPLE, "engine": {"type": "hf", "max_num_seqs": 1}}},
            "sample.engine.max_num_seqs: unknown key; only `vllm` has it\n",
        ),
        ({"train": {"zzz": 1}}, "train.zzz: unknown key\n"),
        # The names of other tools.
        ({"train": {"lr": 1}}, "train.lr: unknown key; did you mean `learning_rate`?"),
        (
            {"sft": {"data": {"path": "p"}, "lr": 1}},
            "sft.lr: unknown key; did you mean `learning_r",
        ),
        ({"train": {"rank": 1}}, "train.rank: unknown key; did you mean `train.method.r`?"),
        ({"train": {"r": 1}}, "train.r: unknown key; did you mean `train.method.r`?"),
        (
            {"train": {"method": {"type": "lora", "lora_r": 8}}},
            "method.lora_r: unknown key; did you mean `r`?",
        ),
        ({"train": {"num_train_epochs": 1}}, "did you mean `num_epochs`?"),
        ({"train": {"batch_size": 1}}, "did you mean `global_batch_size`?"),
        ({"train": {"per_device_train_batch_size": 1}}, "did you mean `micro_batch_size`?"),
        ({"train": {"max_seq_length": 1}}, "did you mean `max_length`?"),
        (
            {"model_name_or_path": "m"},
            "model_name_or_path: unknown key; did you mean `model.base`?",
        ),
        ({"model": {"base": "m", "model_name_or_path": "m"}}, "did you mean `base`?"),
        ({"learning_rate": 1}, "; did you mean `sft.learning_rate` or `train.learning_rate`?"),
        ({"output_dir": "x"}, "did you mean `run.output_dir`?"),
        (
            {"sample": {**SAMPLE, "slots": [{"max_new_tokens": 1}, {}]}},
            "max_new_tokens: unknown key; did you mean `sample.max_new_tokens`?",
        ),
        # Values.
        ({"train": {"loss": "dpo"}}, "did you mean `sigmoid`?"),
        ({"train": {"loss": {"sigmoidd": 1}}}, "train.loss: Input should be"),
        (
            {"train": {"method": {"type": "qlora"}}},
            "did you mean `lora` (with `quantization: nf4`)?",
        ),
        ({"train": {"method": {"r": 8}}}, "train.method: needs the key `type`: lora, full\n"),
        ({"model": {"base": "m", "dtype": "bf16"}}, "did you mean `bfloat16`?"),
        ({"sample": {**SAMPLE, "engine": {"type": "transformers"}}}, "did you mean `hf`?"),
        ({"judge": {"judge": {"type": "anthropic"}}}, "did you mean `claude`?"),
        ({"judge": {"judge": {"type": "openai"}}}, "did you mean `openai_compatible`?"),
    ],
)
def test_the_nearest_right_key_or_value(write_run, sections: dict, message: str) -> None:
    assert message in hint(write_run, sections) + "\n"


class _Free(BaseModel):
    args: dict[str, object] = {}


class _File(BaseModel):
    train: _Free = _Free()


@pytest.mark.parametrize(
    ("loc", "message"),
    [
        (("train", "weight_decay"), "; did you mean `train.args.weight_decay`?"),
        (("warmup_ratio",), "; did you mean `train.args.warmup_ratio`?"),
        (("train", "lr"), ""),
    ],
)
def test_settings_of_the_trainer_have_their_place(loc: tuple[str, ...], message: str) -> None:
    assert key_hint(_File, loc, loc) == message


def test_no_alias_is_a_key_of_its_own_place() -> None:
    """Such an alias would never be reached, or its target is misspelt."""
    for name, ends in ALIASES.items():
        assert name not in ends and all(end == end.lower() for end in ends)
    assert all(name not in Config.model_fields for name in ALIASES)
    assert all(name not in targets for name, targets in VALUES.items())
