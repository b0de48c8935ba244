"""A trained model as a folder for the Hugging Face Hub, with its card, and the way there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_dist.config.runfile import load_config
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ConfigError, DataError, UploadFailed
from dpo_dist.runs.directories import round_folders, run_root
from dpo_dist.storage.artifacts import MANIFEST, read_json, write_json, write_text
from dpo_dist.system.console import say, warn
from dpo_dist.tools.push.card import UNKNOWN_LICENSE, CardFacts, model_card
from dpo_dist.training.merging import merge_adapter

CARD = "card"  # the folder, in the run's directory
TOKEN = "HF_TOKEN"
# TRL's template of a card, and pickles, which nobody should load
LEFT_OUT = shutil.ignore_patterns("README.md", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class TrainedRun:
    """What is published of a run: the report's figures, and the directory of the training."""

    root: Path
    report: dict[str, Any]
    train: Path

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> TrainedRun:
        """From a run's directory or its run file. Raises `DataError` for one that is not complete,
        since its card would have nothing to show."""
        root = path if path.is_dir() else run_root(load_config(path, overrides))
        report = root / "report" / "report.json"
        if not (root / "report" / MANIFEST).exists():
            raise DataError(f"{root}: run all phases first; the card is written from the report")
        if not report.exists():
            raise DataError(
                f"{report} is missing: add `json` to report.formats, and run the phase `report` "
                "again with --force"
            )
        trainings = [folder / "train" for folder in (*round_folders(root), root)]
        trained = [folder for folder in trainings if (folder / MANIFEST).exists()]
        if not trained:
            raise DataError(f"{root}: no completed `train` phase, so there is nothing to publish")
        return cls(root, read_json(report), trained[-1])

    @property
    def is_adapter(self) -> bool:
        return (self.train / "model" / "adapter_config.json").exists()

    @property
    def built_on(self) -> str:
        """The model, a path or Hub id, that an adapter belongs to or that was trained further."""
        if self.is_adapter:
            adapter = read_json(self.train / "model" / "adapter_config.json")
            return str(adapter["base_model_name_or_path"])
        return str(self.report["config"]["model"]["base"])

    @property
    def held_out(self) -> int:
        """How many prompts the evaluation had."""
        folder = self.train.with_name("evaluate")
        return int(read_json(folder / MANIFEST)["counts"]["kept"])


def prepare(run: TrainedRun, facts: CardFacts, *, merged: bool = False) -> Path:
    """Write `<run>/card/`: the weights, the tokenizer and README.md, ready for the Hub.

    Weights are hard links where the file system has them. With `merged` the adapter is added to its
    base, unless training has done so.
    """
    folder = run.root / CARD
    partial = folder.with_name(f".{CARD}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if merged and run.is_adapter and not (run.train / "merged").exists():
        model = run.report["config"]["model"]
        merge_adapter(
            run.built_on,
            run.train / "model",
            partial,
            dtype=model["dtype"],
            trust_remote_code=model["trust_remote_code"],
        )
    else:
        source = run.train / ("merged" if merged and run.is_adapter else "model")
        shutil.copytree(source, partial, copy_function=_link, ignore=LEFT_OUT)
    if facts.adapter:
        _name_base(partial / "adapter_config.json", facts.base_model)
    manifest = read_json(run.train / MANIFEST)
    write_text(partial / "README.md", model_card(run.report, manifest, run.held_out, facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def with_base(run: TrainedRun, facts: CardFacts) -> CardFacts:
    """The facts with the base's Hub id, where the run itself knows it."""
    if facts.base_model is not None or not is_hub_id(run.built_on):
        return facts
    return replace(facts, base_model=run.built_on)


def warn_of_gaps(run: TrainedRun, facts: CardFacts) -> None:
    """Say what the card cannot tell."""
    if facts.license == UNKNOWN_LICENSE:
        warn("the card says `license: unknown`; set one with --license (see the base model's)")
    if facts.base_model is None:
        warn(f"the card names no base_model: {run.built_on} is not a Hub id; give --base-model")


def upload(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder to a model repository, which is made where there is none yet, and return the
    commit's address.

    The token is taken from HF_TOKEN alone. Raises `ConfigError` without one or for a name that
    the Hub does not allow, `UploadFailed` where the Hub refuses or cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = os.environ.get(TOKEN)
    if not token:
        raise ConfigError(f"{TOKEN} is not set: create a token with write access and export it")
    api = HfApi(token=token)
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message="Model and card, by dpo_dist",
        )
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo}: {error}") from None
    except (httpx2.HTTPError, HfHubHTTPError, OfflineModeIsEnabled, ValueError) as error:
        raise UploadFailed(f"{repo}: {error}. The folder is kept: {folder}") from None
    return str(commit.commit_url)


def push(
    path: Path,
    overrides: list[str],
    facts: CardFacts,
    *,
    merged: bool,
    dry_run: bool,
    private: bool,
) -> None:
    """What `dpo-dist push` does: write the folder, and upload it where a repository is named."""
    run = TrainedRun.open(path, overrides)
    facts = replace(with_base(run, facts), adapter=run.is_adapter and not merged)
    if facts.repo and not dry_run and facts.adapter and facts.base_model is None:
        raise ConfigError(
            f"the adapter belongs to {run.built_on}, which is not a Hub id, so nobody could load "
            "it: give the base with --base-model OWNER/NAME, or push the whole model (--merged)"
        )
    folder = prepare(run, facts, merged=merged)
    warn_of_gaps(run, facts)
    say(f"written: {folder}")
    if dry_run or facts.repo is None:
        say("nothing was uploaded" + ("" if dry_run else ": give a repository with --repo"))
        return
    say(f"uploaded: {upload(folder, facts.repo, private=private)}")


def _link(source: str, target: str) -> None:
    """Weights take no space twice; what somebody might edit is the card's own."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def _name_base(path: Path, base: str | None) -> None:
    """Let the adapter name its base by its Hub id; a path of this machine tells nobody anything."""
    adapter: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    name = base or Path(str(adapter["base_model_name_or_path"])).name
    write_json(path, {**adapter, "base_model_name_or_path": name})
