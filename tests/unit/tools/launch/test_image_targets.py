"""`dpo-dist launch kubernetes | compose | skypilot` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpo_dist.cli import main
from tests.conftest import ROOT

RUN_FILE = "recipes/incident_triage/run.yaml"


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)

    def run(target: str, *words: str) -> int:
        return main(["launch", target, RUN_FILE, "--set", f"run.output_dir={tmp_path}", *words])

    return run


def test_kubernetes_writes_its_files_and_says_how_to_submit_them(
    launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--image", "r/dpo-dist:1", "--cpus", "3", "--memory", "12", "--namespace", "ours"]
    assert launch("kubernetes", *options) == 0
    folder = tmp_path / "incident-triage" / "launch" / "kubernetes"
    assert f"bash {folder}/submit.sh" in capsys.readouterr().err
    job = yaml.safe_load((folder / "judge.yaml").read_text())
    assert job["metadata"]["namespace"] == "ours"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "3", "memory": "12Gi"}
    assert container["workingDir"] == "/workspace"


def test_compose_has_images_of_this_version(launch, capsys: pytest.CaptureFixture[str]) -> None:
    from dpo_dist import __version__

    assert launch("compose", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"image: dpo-dist:{__version__}\n" in printed
    assert f"image: dpo-dist:{__version__}-cpu\n" in printed


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("kubernetes", ["--image", "r/dpo-dist"], "give its version"),
        ("kubernetes", ["--image", "r/dpo-dist:1", "--memory", "4"], "--memory 4: at least"),
        ("compose", ["--cpu-image", "dpo-dist:latest"], "give its version"),
        ("skypilot", ["--gpu", "H100", "--gpus-per-node", "8"], "--bucket and --volume"),
    ],
)
def test_bad_input(
    launch, target: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(target, *words) == 2
    assert message in capsys.readouterr().err
