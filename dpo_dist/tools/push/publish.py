"""Writes a trained model and its card to a folder, and uploads it to the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_dist.config import Model
from dpo_dist.config.runfile import load_config
from dpo_dist.data.models import is_hub_id
from dpo_dist.errors import ConfigError, DataError, UploadFailed
from dpo_dist.reporting.card import UNKNOWN_LICENSE, CardFacts, CardSource, model_card
from dpo_dist.reporting.report import ReportData
from dpo_dist.runs.run import Run, round_folders
from dpo_dist.storage.artifacts import (
    FINGERPRINT,
    MANIFEST,
    file_digest,
    read_json,
    write_json,
    write_text,
)
from dpo_dist.storage.figures import read_figures
from dpo_dist.storage.folders import check_run
from dpo_dist.system.console import HUB_KEY, say, warn
from dpo_dist.training.merging import merge_adapter

CARD = "card"  # the folder in the run's directory
# TRL's template of a card, and pickles, which are unsafe to load
LEFT_OUT = shutil.ignore_patterns("README.md", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class TrainedRun:
    """A run's directory, the directory of its last training, and what the card is written from."""

    root: Path
    train: Path
    source: CardSource

    @classmethod
    def open(cls, path: Path, overrides: list[str]) -> TrainedRun:
        """Open a run's directory or run file. Raises `DataError` if no training is complete."""
        if path.is_dir():
            check_run(path)
        root = path if path.is_dir() else Run(load_config(path, overrides)).root
        trainings = [folder / "train" for folder in (*round_folders(root), root)]
        trained = [folder for folder in trainings if (folder / MANIFEST).exists()]
        if not trained:
            raise DataError(f"{root}: no completed `train` phase, so there is nothing to publish")
        report = _report(root, trained[-1])
        return cls(root, trained[-1], CardSource.read(trained[-1], report))

    @property
    def is_adapter(self) -> bool:
        return (self.train / "model" / "adapter_config.json").exists()

    @property
    def built_on(self) -> str:
        """The path or Hub id of the model that was trained further."""
        if self.is_adapter:
            adapter = read_json(self.train / "model" / "adapter_config.json")
            return str(adapter["base_model_name_or_path"])
        return self.model.base

    @property
    def model(self) -> Model:
        return self.source.config.model


def _report(root: Path, train: Path) -> ReportData | None:
    """The report on a training; None without one. Raises `DataError` if its figures are missing."""
    if not (root / "report" / MANIFEST).exists():
        return None
    path = root / "report" / "report.json"
    if not path.exists():
        raise DataError(
            f"{path} is missing: add `json` to report.formats, and run the phase `report` again "
            "with --force"
        )
    report = read_figures(path, ReportData)
    written_for = report.fingerprints.get(str(train.relative_to(root)))
    if written_for is not None and written_for != file_digest(train / FINGERPRINT):
        warn(f"{path} is about an earlier training: the card leaves it out. Run `report` again")
        return None
    return report


def prepare(run: TrainedRun, facts: CardFacts, *, merged: bool = False) -> Path:
    """Write the weights, the tokenizer and README.md to `<run>/card/`. Weights are hard links if
    the file system supports them. With `merged` an adapter is merged, unless training did so."""
    folder = run.root / CARD
    partial = folder.with_name(f".{CARD}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if merged and run.is_adapter and not (run.train / "merged").exists():
        merge_adapter(
            run.built_on,
            run.train / "model",
            partial,
            dtype=run.model.dtype,
            template=run.model.template,
            trust_remote_code=run.model.trust_remote_code,
        )
    else:
        source = run.train / ("merged" if merged and run.is_adapter else "model")
        shutil.copytree(source, partial, copy_function=_link, ignore=LEFT_OUT)
    if facts.adapter:
        _name_base(partial / "adapter_config.json", facts.base_model)
    write_text(partial / "README.md", model_card(run.source, facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def upload(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder to a model repository, which is created if it does not exist. Returns the
    commit's URL. Raises `ConfigError` if HF_TOKEN is not set or the Hub does not allow the name,
    `UploadFailed` if the Hub refuses or cannot be reached."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    token = os.environ.get(HUB_KEY)
    if not token:
        raise ConfigError(f"{HUB_KEY} is not set: create a token with write access and export it")
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
    """Write the folder, and upload it if a repository is named."""
    run = TrainedRun.open(path, overrides)
    facts = replace(facts, adapter=run.is_adapter and not merged)
    if facts.base_model is None and is_hub_id(run.built_on):
        facts = replace(facts, base_model=run.built_on)
    if facts.repo and not dry_run and facts.adapter and facts.base_model is None:
        raise ConfigError(
            f"the adapter belongs to {run.built_on}, which is not a Hub id, so others cannot load "
            "it: give the base with --base-model OWNER/NAME, or push the whole model (--merged)"
        )
    folder = prepare(run, facts, merged=merged)
    if run.source.report is None:
        warn("the card says that nothing was evaluated: there is no report")
    if facts.license == UNKNOWN_LICENSE:
        warn("the card says `license: unknown`; set one with --license (see the base model's)")
    if facts.base_model is None:
        warn(f"the card names no base_model: {run.built_on} is not a Hub id; give --base-model")
    say(f"written: {folder}")
    if dry_run or facts.repo is None:
        say("nothing was uploaded" + ("" if dry_run else ": give a repository with --repo"))
        return
    say(f"uploaded: {upload(folder, facts.repo, private=private)}")


def _link(source: str, target: str) -> None:
    """Link weights, which saves space; copy files that a user may edit."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _name_base(path: Path, base: str | None) -> None:
    """Set the adapter's base to its Hub id, or to its folder's name without the local path."""
    adapter = read_json(path)
    name = base or Path(str(adapter["base_model_name_or_path"])).name
    write_json(path, {**adapter, "base_model_name_or_path": name})
