"""`dpo-dist push`: the folder and its card, and a real `huggingface_hub` against a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from dpo_dist.cli import main
from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.reporting.build import build
from dpo_dist.reporting.card import write_cards
from dpo_dist.reporting.report import ReportData
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.storage.figures import read_figures
from tests.conftest import ROOT
from tests.hub_server import hub
from tests.report_run import manifest, run_at
from tests.unit.reporting.test_build import HOSTILE, make_run

TOKEN = "hf_" + "A1b2" * 8


@pytest.fixture
def config(write_run, tmp_path: Path) -> Config:
    metrics = [{"type": "label_match", "field": "severity"}]
    return load_config(
        write_run(
            model={"base": "models/secret-place/Tiny-1M"},
            sample={
                "prompts": {"dataset": "owner/prompts", "split": "train"},
                "engine": {"type": "hf"},
            },
            judge={"judge": {"type": "metric", "metrics": metrics}},
            train={"beta": 0.3, "method": {"type": "lora", "r": 4, "alpha": 8}},
            evaluate={"prompts": {"path": "e.jsonl"}, "metrics": metrics},
        )
    )


@pytest.fixture
def root(config: Config, tmp_path: Path) -> Path:
    """A complete run with an adapter, whose texts are hostile."""
    root = tmp_path / "runs" / "test"
    make_run(root)
    train = read_json(root / "train" / "manifest.json")
    train |= {"pairs": {"train": 27, "validation": 3}, "steps": 7, "selected_step": 6}
    write_json(root / "train" / "manifest.json", {**train, "processes": 2})
    build(run_at(root, config), root / "report")
    write_json(root / "report" / "manifest.json", manifest("report", config))
    model = root / "train" / "model"
    write_json(
        model / "adapter_config.json",
        {"base_model_name_or_path": "models/secret-place/Tiny-1M", "r": 4},
    )
    (model / "adapter_model.safetensors").write_bytes(b"weights")
    (model / "tokenizer.json").write_text("{}")
    (model / "README.md").write_text("TRL's template")
    (model / "training_args.bin").write_bytes(b"a pickle")
    return root


def card(root: Path) -> tuple[dict, str]:
    """Front matter and body."""
    text = (root / "card" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_folder_is_ready_for_the_hub(root: Path, capsys) -> None:
    before = {p: p.read_bytes() for p in (root / "train").rglob("*") if p.is_file()}
    assert main(["push", str(root), "--base-model", "owner/tiny", "--license", "mit"]) == 0
    said = capsys.readouterr().err
    assert "nothing was uploaded: give a repository with --repo" in said and "warning" not in said
    folder = root / "card"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    }
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "owner/tiny"
    (folder / "tokenizer.json").write_text("edited")
    assert {p: p.read_bytes() for p in (root / "train").rglob("*") if p.is_file()} == before
    assert main(["push", str(root)]) == 0, "made again"
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_the_card_tells_what_was_done_and_shown(root: Path) -> None:
    words = ["--license", "other", "--license-name", "mine", "--language", "en", "--tag", "triage"]
    words += ["--dataset", "owner/more", "--base-model", "owner/tiny", "--repo", "me/mine"]
    assert main(["push", str(root), "--dry-run", *words]) == 0
    front, body = card(root)
    (index,) = front.pop("model-index")
    results = {m["name"]: m for r in index["results"] for m in r["metrics"]}
    assert index["name"] == "test"
    assert {r["dataset"]["name"] for r in index["results"]} == {"the file e.jsonl"}
    severity = results["Severity match"]
    assert (severity["type"], severity["value"]) == ("m", 0.5)
    assert front == {
        **{"base_model": "owner/tiny", "library_name": "peft", "pipeline_tag": "text-generation"},
        **{"license": "other", "license_name": "mine", "language": ["en"]},
        **{"datasets": ["owner/prompts", "owner/more"]},
        **{"tags": ["dpo", "trl", "lora", "dpo_dist", "triage"]},
    }
    for line in (
        "| Severity match | 10.0 % [3–30] n=20 | 25.0 % [11–47] n=20 | 50.0 % [30–70] n=20 "
        "| +25.0 pp [+5, +45] n=20 |",
        "- judge: 48 comparisons in, 30 kept (3 inconsistent); dropped: 17 tie, 1 inconsistent",
        r"- Prompts: owner/prompts (train); 2 answers each from the model that DPO started from "
        "(temperature 0.7, temperature 1.2).",
        "| Said twice is no better | 1 of 4 [5–70], 2 without a comparison | accepted |",
        "| Method | LoRA r=4, alpha=8 |",
        "| β | 0.3 |",
        "| Pairs | 27 to train on, 3 for validation |",
        "| Steps | 7; the weights are those of step 6 |",
        "torch 2.13.0; revision abc",
        'model = AutoPeftModelForCausalLM.from_pretrained("me/mine")',
    ):
        assert line in body, line
    limits = body[body.index("## Limitations") : body.index("## Use")]
    assert "from 20 held-out prompts" in limits
    assert "The judge that labelled the training pairs also made the comparison" in limits
    assert "The judge passed 1 of 4 canaries of the kind “Said twice is no better”." in limits
    assert "Labels: chosen is longer in 90 % of 30, which is outside the expected range." in limits
    assert "Alarm in training at step 2 (kl budget): over the budget" in limits


def test_what_is_hostile_or_private_stays_out(root: Path) -> None:
    assert main(["push", str(root)]) == 0
    text = "".join(p.read_text() for p in (root / "card").iterdir() if p.suffix != ".safetensors")
    assert HOSTILE not in text and "\x1b" not in text and "\u202e" not in text
    assert "<script>" not in text and "![x]" not in text
    assert "secret-place" not in text and str(root) not in text and "Tiny-1M" in text


def test_what_is_not_given_is_not_guessed(root: Path, capsys) -> None:
    assert main(["push", str(root)]) == 0
    said = capsys.readouterr().err
    assert "warning: the card says `license: unknown`" in said
    assert "warning: the card names no base_model: models/secret-place/Tiny-1M" in said
    front, body = card(root)
    assert front["license"] == "unknown" and "base_model" not in front
    assert "The licence is not stated" in body


def test_a_report_without_figures_and_a_run_without_a_training(
    root: Path, tmp_path: Path, capsys
) -> None:
    (root / "report" / "report.json").unlink()
    assert main(["push", str(tmp_path / "run.yaml")]) == 2
    assert "add `json` to report.formats" in capsys.readouterr().err
    (root / "train" / "manifest.json").unlink()
    assert main(["push", str(root)]) == 2
    assert "no completed `train` phase" in capsys.readouterr().err


def test_a_training_alone_is_published_as_not_evaluated(root: Path, config: Config, capsys) -> None:
    training = read_json(root / "train" / "manifest.json")
    write_json(root / "train" / "manifest.json", {**training, "config": config.dump()})
    for phase in ("evaluate", "report"):
        shutil.rmtree(root / phase)
    assert main(["push", str(root), "--base-model", "owner/tiny", "--license", "mit"]) == 0
    assert "the card says that nothing was evaluated" in capsys.readouterr().err
    front, body = card(root)
    assert "model-index" not in front and front["base_model"] == "owner/tiny"
    shown = body[body.index("## What the evaluation shows") : body.index("## Limitations")]
    assert "Nothing was evaluated." in shown and "| Severity match" not in body
    assert "whether the training improved the model is unknown" in body
    assert "Alarm in training at step 2 (kl budget): over the budget" in body
    assert "| Said twice is no better | 1 of 4 [5–70]" in body, "the judge's card"
    assert "- judge: 48 comparisons in, 30 kept" in body and "| β | 0.3 |" in body


def test_a_report_on_an_earlier_training_is_left_out(root: Path, capsys) -> None:
    report = read_json(root / "report" / "report.json")
    write_json(root / "train" / "fingerprint.json", {"inputs": 2})
    report["fingerprints"] = {"train": "of another training"}
    write_json(root / "report" / "report.json", report)
    assert main(["push", str(root)]) == 0
    assert "is about an earlier training" in capsys.readouterr().err
    assert "model-index" not in card(root)[0]


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_trained_model_has_its_card(root: Path, evaluated: bool) -> None:
    report = read_figures(root / "report" / "report.json", ReportData)
    (root / "train" / "merged").mkdir()
    write_cards(root / "train", report if evaluated else None)
    for name in ("model", "merged"):
        text = (root / "train" / name / "README.md").read_text(encoding="utf-8")
        assert "secret-place" not in text and "TRL's template" not in text
        _, front, body = text.split("---\n", 2)
        found = yaml.safe_load(front)
        assert ("model-index" in found) == evaluated
        assert found["library_name"] == {"model": "peft", "merged": "transformers"}[name]
        assert ("Nothing was evaluated." in body) != evaluated
        ModelCard(text).data.to_dict()  # the Hub's own reader accepts it


def test_a_merged_model_is_a_model_of_its_own(root: Path) -> None:
    merged = root / "train" / "merged"
    merged.mkdir()
    (merged / "model.safetensors").write_bytes(b"sum")
    (merged / "config.json").write_text("{}")
    assert main(["push", str(root), "--merged", "--dry-run", "--base-model", "owner/tiny"]) == 0
    assert {p.name for p in (root / "card").iterdir()} == {
        *("README.md", "model.safetensors", "config.json")
    }
    front, body = card(root)
    assert front["library_name"] == "transformers" and front["base_model"] == "owner/tiny"
    assert "lora" not in front["tags"] and "A model trained with" in body


def test_a_whole_model_from_public_pairs(root: Path) -> None:
    """As a full fine-tuning on UltraFeedback leaves it: no judge, no adapter."""
    report = read_json(root / "report" / "report.json")
    report["config"]["preferences"] = {
        **{"source": "ultrafeedback", "dataset": "HuggingFaceH4/ultrafeedback_binarized"}
    }
    report["config"]["train"]["method"] = {"type": "full"}
    report["config"]["model"]["base"] = "owner/tiny"
    report |= {"judges": {"evaluate": None}, "canaries": [], "audit": []}
    write_json(root / "report" / "report.json", report)
    model = root / "train" / "model"
    (model / "adapter_config.json").unlink()
    (model / "adapter_model.safetensors").rename(model / "model.safetensors")
    assert main(["push", str(root)]) == 0
    front, body = card(root)
    assert front["base_model"] == "owner/tiny" and front["library_name"] == "transformers"
    assert front["datasets"] == ["HuggingFaceH4/ultrafeedback_binarized"]
    assert "on preference pairs from HuggingFaceH4/ultrafeedback\\_binarized." in body
    assert "| Method | all weights |" in body
    assert "labelled" not in body and "compared in both orders" not in body
    assert "canaries" not in body


def test_an_adapter_that_is_not_merged_yet_is_merged(root: Path, tiny_model: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    adapted.save_pretrained(root / "train" / "model")
    assert main(["push", str(root), "--merged"]) == 0
    found = AutoModelForCausalLM.from_pretrained(root / "card", dtype=torch.float32)
    expected = adapted.merge_and_unload().state_dict()
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, expected[name].float(), rtol=1e-2, atol=1e-2)
    assert not (root / "train" / "merged").exists()


def push(root: Path, url: str, *words: str, token: str | None = TOKEN):
    """In a process of its own: the library reads its endpoint when it is imported."""
    surroundings = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
    surroundings |= {"HF_HOME": str(root / "hf"), "PYTHONPATH": str(ROOT)}
    surroundings.pop("HF_TOKEN", None)
    if token:
        surroundings["HF_TOKEN"] = token
    command = [sys.executable, "-m", "dpo_dist", "push", str(root), "--repo", "me/mine", *words]
    return subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
    )


def test_the_library_uploads_the_whole_folder_in_one_commit(root: Path) -> None:
    with hub(TOKEN) as there:
        done = push(root, there.url, "--base-model", "owner/tiny", "--license", "mit")
        assert done.returncode == 0, done.stderr
        assert f"uploaded: {there.url}/me/mine/commit/" in done.stderr
        assert TOKEN not in done.stderr + done.stdout
        (made,) = there.repos.values()
        assert made.get("private") is True or made.get("visibility") == "private"
        assert there.files == {p.name: p.read_bytes() for p in (root / "card").iterdir()}
        again = push(root, there.url, "--base-model", "owner/tiny", "--license", "mit")
        assert again.returncode == 0, again.stderr


def test_what_the_hub_refuses_is_said_without_the_token(root: Path) -> None:
    with hub("another token") as there:
        done = push(root, there.url, "--base-model", "owner/tiny")
        assert done.returncode == 1 and "error: me/mine: " in done.stderr
        assert "401" in done.stderr and TOKEN not in done.stderr + done.stdout
        assert not there.files
    assert (root / "card" / "README.md").exists()


def test_a_hub_that_cannot_be_reached_is_no_traceback(root: Path) -> None:
    done = push(root, "http://127.0.0.1:9", "--base-model", "owner/tiny")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"The folder is kept: {root / 'card'}" in done.stderr


def test_nothing_is_sent_without_a_token_or_a_base(root: Path) -> None:
    with hub(TOKEN) as there:
        done = push(root, there.url, "--base-model", "owner/tiny", token=None)
        assert done.returncode == 2 and "HF_TOKEN is not set" in done.stderr
        done = push(root, there.url)
        assert done.returncode == 2
        assert "give the base with --base-model OWNER/NAME" in done.stderr
        done = push(root, there.url, "--base-model", "owner/tiny", "--repo", "me/not allowed")
        assert done.returncode == 2 and "error: --repo me/not allowed: " in done.stderr
        done = push(root, there.url, "--dry-run")
        assert done.returncode == 0 and not there.repos


def test_the_run_is_left_as_it_was(root: Path) -> None:
    """A report that was made before stays byte for byte; the folder lies beside the phases."""
    before = (root / "report" / "report.json").read_bytes()
    assert main(["push", str(root)]) == 0
    assert (root / "report" / "report.json").read_bytes() == before
    assert json.loads(before)["run"] == "test"
