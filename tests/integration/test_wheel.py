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
# A virtual environment with the wheel alone has none of the packages of the extras.
HIDE = """
from importlib.machinery import PathFinder

HIDDEN = ("bitsandbytes", "deepspeed", "gguf", "lm_eval", "openai", "vllm", "wandb")
find_spec = PathFinder.find_spec


def find_others(name, path=None, target=None):
    return None if name in HIDDEN else find_spec(name, path, target)


PathFinder.find_spec = staticmethod(find_others)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and programs, installed by pip. Python that has it on its
    path finds no package of an extra."""
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
    (site / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
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
    code = (
        "import dpo_dist; from importlib.util import find_spec\n"
        "print(dpo_dist.__file__, find_spec('deepspeed'))"
    )
    place = installed / "dpo_dist" / "__init__.py"
    assert start(installed, tmp_path, sys.executable, "-c", code) == f"{place} None\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "package"),
    [
        (("train", "run.yaml", "--set", "train.accelerate_config=cpu_zero2"), "deepspeed>=0.19"),
        (("run", "run.yaml", "--set", "train.method.quantization=nf4"), "bitsandbytes>=0.5"),
    ],
)
def test_a_package_of_an_extra_is_named_before_any_work(
    installed: Path, tmp_path: Path, taught_model: Path, words: tuple[str, ...], package: str
) -> None:
    program = (sys.executable, installed / "bin" / "dpo-dist")
    start(installed, tmp_path, *program, "init", "--template", "preferences")
    done = subprocess.run(
        [*program, *words, "--set", f"model.base={taught_model}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    name = package.partition(">")[0]
    assert f"{name} is not installed. Install it with: pip install '{name}" in done.stderr
    assert package in done.stderr.replace("<0.20,", "").replace("<1,", "")
    assert not (tmp_path / "runs").exists()
