"""The Python API: its names, a start that is instant, and what it reads and refuses."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_dist
from dpo_dist.errors import ConfigError, DataError, UserError
from dpo_dist.system.console import YES
from tests.conftest import ROOT

RULE = {"type": "metric", "metrics": [{"type": "regex", "pattern": "GOOD"}]}


def test_the_public_names_and_their_parameters_stay() -> None:
    assert dpo_dist.__all__ == [
        *("DpoDistError", "LoadedRun", "__version__", "load_run", "prefer"),
        *("read_pairs", "read_report", "run_phases"),
    ]
    functions = ("load_run", "prefer", "read_pairs", "read_report", "run_phases")
    parameters = {
        name: list(inspect.signature(getattr(dpo_dist, name)).parameters) for name in functions
    }
    assert parameters == {
        "load_run": ["run_file", "overrides"],
        "prefer": ["judge", "prompt", "a", "b", "reference"],
        "read_pairs": ["run", "split"],
        "read_report": ["run"],
        "run_phases": ["run", "phases", "force", "yes"],
    }
    described = (ROOT / "docs" / "python.md").read_text()
    assert all(f"`{name}" in described for name in dpo_dist.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        dpo_dist.absent  # noqa: B018


def test_the_import_is_instant() -> None:
    code = "import sys, dpo_dist; print(len({'pydantic', 'torch', 'datasets'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [("GOOD", "bad", "a"), ("bad", "GOOD", "b"), ("GOOD", "GOOD too", "tie"), ("x", "x", "tie")],
)
def test_a_judge_prefers(a: str, b: str, verdict: str) -> None:
    assert dpo_dist.prefer(RULE, "question", a, b) == verdict


def test_a_judge_that_always_takes_the_first_is_inconsistent(
    tmp_path: Path, write_module, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = write_module("def prefer(prompt, first, second):\n    return 'first'\n")
    judge = {"type": "function", "path": f"{name}:prefer"}
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert dpo_dist.prefer(judge, messages, "one", "two") == "inconsistent"


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"type": "metric"}, "metrics"),
        ({"type": "nobody"}, "nobody"),
        ({"type": "human", "sheet": "s.csv"}, "people fill in a sheet"),
    ],
)
def test_a_judge_that_cannot_answer_is_refused(judge: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dpo_dist.prefer(judge, "question", "a", "b")


@pytest.fixture
def pairs_run(write_run, write_jsonl, tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(10)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return write_run(
        model={"base": "absent/model"},
        preferences={"source": "path", "path": "pairs.jsonl", "validation_fraction": 0.2},
        train={},
    )


def test_a_run_file_is_loaded_with_overrides(pairs_run: Path, tmp_path: Path) -> None:
    run = dpo_dist.load_run(pairs_run, {"train.beta": 0.3, "train.loss": {"sigmoid": 1, "sft": 1}})
    assert (run.config.train.beta, set(run.config.train.loss)) == (0.3, {"sigmoid", "sft"})
    assert (run.phases, run.folder) == (["train"], tmp_path / "runs" / "test")
    with pytest.raises(ConfigError, match=r"train\.bta: unknown key"):
        dpo_dist.load_run(pairs_run, {"train.bta": 0.3})


def test_pairs_are_a_dataset_in_trl_s_format(pairs_run: Path) -> None:
    run = dpo_dist.load_run(str(pairs_run))
    train, validation = dpo_dist.read_pairs(run), dpo_dist.read_pairs(run, "validation")
    assert (len(train), len(validation)) == (8, 2)
    assert set(train.column_names) == {"prompt_id", "prompt", "chosen", "rejected"}
    number = train[0]["prompt"][0]["content"].removeprefix("q")
    assert train[0]["chosen"] == [{"role": "assistant", "content": f"yes {number}"}]


def test_what_is_not_there_is_named(pairs_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json: no such file"):
        dpo_dist.read_report(dpo_dist.load_run(pairs_run))
    with pytest.raises(DataError, match="no such file or directory"):
        dpo_dist.read_pairs(tmp_path / "absent")
    with pytest.raises(UserError, match="not configure the phase `judge`"):
        dpo_dist.run_phases(dpo_dist.load_run(pairs_run), "judge")


def test_phases_run_as_on_the_command_line(pairs_run: Path, monkeypatch) -> None:
    from dpo_dist.phases import pipeline

    monkeypatch.delenv(YES, raising=False)
    started = []

    def note(command: list[str], env: dict[str, str], **_: object) -> int:
        started.append((command[3:], env[YES]))
        return 0 if len(started) == 1 else 2

    monkeypatch.setattr(pipeline, "run_to_end", note)
    monkeypatch.setattr("dpo_dist.api.check_before_work", lambda run: None)
    run = dpo_dist.load_run(pairs_run, {"train.beta": 0.3})
    dpo_dist.run_phases(run, "train", force=True, yes=True)
    assert started == [(["train", str(pairs_run), "--set", "train.beta=0.3", "--force"], "1")]
    assert YES not in os.environ
    with pytest.raises(UserError, match="was refused"):
        dpo_dist.run_phases(run, yes=True)


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads((ROOT / "docs" / "finished_run.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
