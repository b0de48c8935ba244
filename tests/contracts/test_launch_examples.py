"""The files in `launch/` are what `dpo-dist launch` makes, and shell that shellcheck finds well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.examples import EXAMPLES, Example
from tests.conftest import ROOT

SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.folder))
def test_an_example_is_up_to_date(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    again = "run `make launch-examples`"
    for name, text in example.files().items():
        path = example.folder / name
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date; {again}"
        assert not text.startswith("#!") or path.stat().st_mode & 0o111, path


def test_no_example_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = {example.folder / name for example in EXAMPLES for name in example.files()}
    assert {path for path in Path("launch").rglob("*") if _rendered(path)} == made


def _rendered(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc")


def test_the_scripts_pass_shellcheck() -> None:
    scripts = [
        *ROOT.glob("launch/**/*.sh"),
        *ROOT.glob("launch/**/*.sbatch"),
        ROOT / ".ci" / "run",
    ]
    assert len(scripts) > 5
    done = subprocess.run([SHELLCHECK, "-x", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
