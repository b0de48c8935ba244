"""What training saves is the model that it had: every artifact is loaded again and asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from dpo_dist.data.chat import completion_ids, load_tokenizer
from dpo_dist.storage.records import Message
from tests.in_process import in_this_process
from tests.integration.trainings import VALIDATION, losses, metrics, shipped, train
from tests.numerics.test_against_trl import sft_adapter


def load_whole(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_adapter(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_whole(base), str(folder)).eval()


def mean_logp(model: Any, tokenizer: Any, key: str) -> float:
    """The mean log-prob of the validation answers, by one plain forward each."""
    total = 0.0
    for row in VALIDATION:
        messages = [Message(role="user", content=row["prompt"])]
        prompt, completion = completion_ids(tokenizer, messages, row[key])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        total += sum(logits[t, token].item() for t, token in zip(at, completion, strict=True))
    return total / len(VALIDATION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "accelerate_config", "from_adapter"),
    [("lora", "cpu", True), ("full", "cpu", True), ("full", "cpu_zero3", False)],
)
def test_a_saved_model_answers_as_the_trainer_s_did(
    method: str,
    accelerate_config: str,
    from_adapter: bool,
    training_file: Path,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    settings = "{type: lora, r: 4, alpha: 8}" if method == "lora" else "{type: full}"
    overrides = [
        f"train.method={settings}",
        f"train.merge={str(method == 'lora').lower()}",
        "train.learning_rate=1.0e-3",
        "train.eval_per_epoch=6",
        shipped(accelerate_config),
    ]
    if from_adapter:
        overrides.append(f"model.sft={sft_adapter(tiny_model, tmp_path / 'sft')}")
    with in_this_process():
        assert train(training_file, *overrides) == 0
    out = tmp_path / "runs" / "test" / "train"
    lines = metrics(out)
    assert losses(out)[0] == pytest.approx(math.log(2), abs=1e-5), "the SFT model is the reference"
    last = [line for line in lines if "eval_logps/chosen" in line][-1]
    steps = [line["step"] for line in lines if "loss" in line]
    assert last["step"] == steps[-1], "validated after the last step"

    _check_usage(out)
    tokenizer = load_tokenizer(str(tiny_model))
    artifacts = [
        load_whole(out / "model") if method == "full" else load_adapter(tiny_model, out / "model")
    ]
    if method == "lora":
        artifacts.append(load_whole(out / "merged"))
        assert json.loads((out / "model" / "adapter_config.json").read_text())["r"] == 4
    for model in artifacts:
        for key in ("chosen", "rejected"):
            assert mean_logp(model, tokenizer, key) == pytest.approx(
                last[f"eval_logps/{key}"], abs=2e-3
            )
    start = load_whole(tiny_model)
    assert abs(mean_logp(start, tokenizer, "chosen") - last["eval_logps/chosen"]) > 0.1


def _check_usage(out: Path) -> None:
    """The tokens are those of the rows, each prompt once; the peaks are those of the outcome."""
    lines = [line for line in metrics(out) if "loss" in line]
    rows = pyarrow.parquet.read_table(out / "tokens" / "train.parquet", columns=["tokens"])
    assert lines[-1]["num_tokens"] == sum(rows["tokens"].to_pylist())
    assert all(line["tokens_per_second"] > 0 for line in lines[1:])
    peaks = [line["peak_memory_gib"] for line in lines]
    manifest = json.loads((out / "manifest.json").read_text())
    assert peaks == sorted(peaks) and peaks[-1] <= manifest["peak_rss_bytes"] / 2**30
    assert "mfu" not in lines[-1] and "peak_device_bytes" not in manifest, "without a GPU"


def test_a_method_that_cannot_start_from_the_adapter_is_refused(
    training_file: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = f"model.sft={sft_adapter(tiny_model, tmp_path / 'sft')}"
    assert train(training_file, adapter, "train.method={type: lora, r: 16}") == 2
    said = capsys.readouterr().err
    assert "train.method.r is 16" in said and "whose r is 4. Set it to 4" in said
