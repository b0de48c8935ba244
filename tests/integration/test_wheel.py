"""The wheel in an empty folder: from `init` to a report, and the notebook on the finished run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.contracts.test_image import in_git

# The taught model answers with two letters or two digits.
LETTERS = '[{type: regex, pattern: "[a-z]"}]'


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and programs, installed by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in in_git("pyproject.toml", "README.md", "LICENSE", "NOTICE", "dpo_dist"):
        target = folder / "source" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quick = ("--no-deps", "--no-build-isolation", "--no-cache-dir")
    wheels = ["--wheel-dir", folder, folder / "source"]
    subprocess.run([*pip, "wheel", *quick, *wheels], check=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    site = folder / "site"
    install = ["install", "--no-deps", "--no-cache-dir", "--target", site, wheel]
    subprocess.run([*pip, *install], check=True, timeout=300)
    assert "dpo_dist/py.typed" in zipfile.ZipFile(wheel).namelist()
    return site


def start(site: Path, folder: Path, *words: object, **more: str) -> str:
    """Run a program of the wheel in a folder; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(site), **more}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_begins_in_an_empty_folder(
    installed: Path, tmp_path: Path, taught_model: Path
) -> None:
    program = (sys.executable, installed / "bin" / "dpo-dist")
    start(installed, tmp_path, *program, "init")
    settings = {
        "model.base": taught_model,
        "model.dtype": "float32",
        "judge.judge.metrics": LETTERS,
        "sample.max_new_tokens": 12,
        "evaluate.max_new_tokens": 8,
        "train.kl.max_new_tokens": 4,
        "train.method.r": 2,
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    shown = start(installed, tmp_path, *program, "run", "run.yaml", *overrides, "--dry-run")
    assert "sample: start" in shown and "at most about $0.00" in shown
    printed = start(installed, tmp_path, *program, "run", "run.yaml", *overrides)
    assert "report: runs/minimal/report/report.html" in printed
    versions = json.loads((tmp_path / "runs/minimal/train/manifest.json").read_text())["versions"]
    assert "dpo_dist" in versions
    shown = start(installed, tmp_path, *program, "run", "run.yaml", *overrides, "--dry-run")
    assert "sample: done\njudge: done\ntrain: done\nevaluate: done\nreport: start" in shown

    notebook = json.loads((ROOT / "docs" / "finished_run.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (tmp_path / "notebook.py").write_text("\n".join(cells), encoding="utf-8")
    told = start(
        installed, tmp_path, sys.executable, "notebook.py", RUN="runs/minimal", MPLBACKEND="agg"
    )
    assert told.startswith("minimal -> ") and told.endswith("\na\n")
    assert "features: ['prompt_id', 'prompt', 'chosen', 'rejected']" in told
    code = "import dpo_dist; print(dpo_dist.__file__)"
    assert start(installed, tmp_path, sys.executable, "-c", code).startswith(str(installed))
