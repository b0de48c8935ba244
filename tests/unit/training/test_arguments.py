"""`args` are checked against TRL's own fields; what the run file decides is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dpo_dist.config import DataSource, Optimization, Sft, Train
from dpo_dist.config.method import REFUSED_LORA, Lora
from dpo_dist.config.training import RUNTIME_ARGS
from dpo_dist.errors import ConfigError
from dpo_dist.training.arguments import arguments, arguments_class, check_arguments, refused

ORDINARY = {
    **{"lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.01},
    **{"adam_beta2": 0.95, "adam_epsilon": "1e-8", "report_to": ["wandb"]},
}


def sft(**args: Any) -> Sft:
    return Sft(data=DataSource(path="rows.jsonl"), args=args)


@pytest.mark.parametrize("settings", [Train(args=ORDINARY), sft(**ORDINARY)], ids=["dpo", "sft"])
def test_ordinary_settings_pass_with_the_types_of_the_fields(settings: Optimization) -> None:
    check_arguments(settings)
    assert arguments(settings) == {
        **{"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01},
        **{"adam_beta2": 0.95, "adam_epsilon": 1e-8},
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"wight_decay": 1}, r"train\.args\.wight_decay: .*DPOConfig.*did you mean `weight_decay`"),
        ({"weight_decay": "much"}, r"train\.args\.weight_decay: 'much': .*valid number"),
        ({"weight_decay": True}, r"train\.args\.weight_decay: True is not a number"),
        ({"weight_decay": -1}, r"train\.args\.weight_decay: -1 is below 0"),
        ({"lr_scheduler_type": "cosin"}, r"lr_scheduler_type: 'cosin' .*did you mean `cosine`"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs a validation metric"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "lr_scheduler_type: linear: .*'foo'"),
        ({"optim": "adamw8bit"}, r"optim: 'adamw8bit' .*did you mean `adamw_8bit`"),
        ({"optim": "lomo"}, r"optim: lomo: .*pip install lomo-optim"),
        ({"adam_beta1": 2}, r"optim: \w+: Invalid beta"),
        ({"warmup_ratio": 10}, "10 is not a share of the steps"),
        ({"dataloader_num_workers": 2.5}, r"dataloader_num_workers: 2\.5: .*valid integer"),
        ({"dataloader_prefetch_factor": 2}, r"train\.args: .*dataloader_num_workers"),
        ({"report_to": ["mlflow"]}, r"report_to: mlflow is not installed.*pip install mlflow"),
        ({"report_to": "wnadb"}, r"report_to: 'wnadb' .*did you mean `wandb`"),
        ({"per_device_train_batch_size": 4}, "it is the key `micro_batch_size`"),
        ({"beta": 0.2, "seed": 3}, r"beta: .*train\.beta\n.*seed: .*run\.seed"),
        ({"deepspeed": "zero2.json"}, "accelerate_config"),
        ({"gradient_accumulation_steps": 4}, "follows from global_batch_size"),
        ({"neftune_noise_alpha": 5}, "noise"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arguments(Train(args=args))


def test_sft_has_its_own_fields() -> None:
    check_arguments(sft(neftune_noise_alpha=5))
    with pytest.raises(ConfigError, match=r"sft\.args\.packing: .*own batches"):
        check_arguments(sft(packing=True))
    with pytest.raises(ConfigError, match="SFTConfig has no such argument"):
        check_arguments(sft(precompute_ref_log_probs=True))
    with pytest.raises(ConfigError, match="`warmup_steps` is set, too"):
        check_arguments(
            Sft(data=DataSource(path="rows.jsonl"), warmup_steps=3, args={"warmup_ratio": 0.1})
        )


@pytest.mark.parametrize("settings", [Train(), sft()], ids=["dpo", "sft"])
def test_the_tables_name_only_fields_that_exist(settings: Optimization) -> None:
    names = {field.name for field in fields(arguments_class(settings))}
    assert refused(settings).keys() <= names
    assert names >= RUNTIME_ARGS and not RUNTIME_ARGS & refused(settings).keys()


def test_every_setting_of_peft_is_a_key_or_is_refused() -> None:
    from peft import LoraConfig, PeftConfig

    theirs = {f.name for f in fields(LoraConfig)} - {f.name for f in fields(PeftConfig)}
    ours = Lora.model_fields.keys() - {"type", "alpha", "dropout", "quantization"}
    assert theirs == ours | REFUSED_LORA.keys()


def test_without_args_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    check_arguments(Train())
    assert arguments(Train()) == {}
    with pytest.raises(ImportError):
        check_arguments(Train(args={"weight_decay": 0.1}))


def test_trackers_are_not_in_the_fingerprint() -> None:
    plain = Train(args={"optim": "sgd"})
    tracked = Train(args={"optim": "sgd", "report_to": "wandb"})
    assert plain.fixed() == tracked.fixed() != Train().fixed()
    assert tracked.trackers == ("wandb",) and Train(args={"report_to": "none"}).trackers == ()
