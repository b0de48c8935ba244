"""The user's own functions, imported and scored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_dist.config import FunctionMetric
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.metrics import Answer, NotScored, attempt, build_metric
from dpo_dist.runs.weights import resource_digests
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.storage.records import Message, Prompt

PROMPT = Prompt(id="p", messages=(Message(role="user", content="q"),), reference={"words": 2})
CODE = """
from neighbour_of_metrics import LIMIT

def share(prompt, answer):
    if not answer:
        return None
    return len(answer.split()) / prompt.reference["words"]

def count(prompt, answer):
    return min(len(answer), LIMIT)

def quotes(prompt, answer):
    raise ValueError(f"cannot read {answer}")

constant = 1
"""


@pytest.fixture
def module(tmp_path: Path, write_module) -> str:
    (tmp_path / "neighbour_of_metrics.py").write_text("LIMIT = 40")
    return write_module(CODE)


def section(folder: Path, name: str, **more: str) -> FunctionMetric:
    return FunctionMetric(type="function", path=folder / name, **more)


def test_a_function_beside_the_run_file_scores(tmp_path: Path, module: str) -> None:
    metric = build_metric(section(tmp_path, f"{module}:share"))
    assert (metric.unit, metric.better, metric.label) == ("share", "higher", f"{module}:share")
    assert attempt(metric, PROMPT, Answer("word")) == 0.5
    count = build_metric(section(tmp_path, f"{module}:count", unit="characters"))
    assert attempt(count, PROMPT, Answer("word" * 20)) == 40


@pytest.mark.parametrize(
    ("answer", "reference", "reason", "message"),
    [
        ("", 2, "no_value", "returned None"),
        ("a b c", 2, "out_of_range", "1.5 is not a valid share"),
        ("a", float("nan"), "out_of_range", "nan is not a valid share"),
        ("a", 0, "failed", "ZeroDivisionError: division by zero"),
        ("a", "two", "failed", "TypeError: unsupported operand"),
    ],
)
def test_what_a_function_cannot_score_is_named(
    tmp_path: Path, module: str, answer: str, reference: object, reason: str, message: str
) -> None:
    metric = build_metric(section(tmp_path, f"{module}:share"))
    prompt = PROMPT.model_copy(update={"reference": {"words": reference}})
    with pytest.raises(NotScored, match=message) as caught:
        attempt(metric, prompt, Answer(answer))
    assert caught.value.reason == reason and str(caught.value).startswith(f"{module}:share: ")


def test_an_error_that_quotes_the_answer_does_nothing_to_a_terminal(
    tmp_path: Path, module: str
) -> None:
    metric = build_metric(section(tmp_path, f"{module}:quotes"))
    with pytest.raises(NotScored) as caught:
        attempt(metric, PROMPT, Answer("\x1b[31m\nred\ud800 " + "x" * 9999))
    said = str(caught.value).removeprefix(f"{module}:quotes: ValueError: ")
    assert said.startswith(r"cannot read \x1b[31m red\ud800 xxx") and len(said) < 320


def test_a_function_that_is_not_there_is_named(tmp_path: Path, module: str) -> None:
    for name, message in (
        ("no_such_module:f", "No module named 'no_such_module'"),
        (f"{module}:missing", "has no attribute 'missing'"),
        (f"{module}:constant", "is not a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_metric(section(tmp_path, name))


def test_the_fingerprint_has_the_module(tmp_path: Path, module: str) -> None:
    file = tmp_path / f"{module}.py"
    assert resource_digests([section(tmp_path, f"{module}:share")]) == {
        f"{module}:share": file_digest(file)
    }


def test_the_run_file_s_folder_is_found_from_anywhere(tmp_path: Path, module: str, write_run):
    def metrics(path: str) -> Path:
        return write_run(
            model={"base": "m"},
            evaluate={
                "prompts": {"path": "e.jsonl"},
                "engine": {"type": "hf"},
                "metrics": [{"type": "function", "path": path}],
            },
        )

    config = load_config(metrics(f"{module}:share"))
    assert config.evaluate is not None
    assert build_metric(config.evaluate.metrics[0]).label == f"{module}:share"
    with pytest.raises(ConfigError, match=r"'share' is not of the form module:function"):
        load_config(metrics("share"))


def test_the_working_directory_is_searched_too(tmp_path: Path, module: str) -> None:
    code = (
        "from dpo_dist.config import FunctionMetric\n"
        "from dpo_dist.metrics import build_metric\n"
        f"section = FunctionMetric(type='function', path='/nowhere/{module}:count')\n"
        "print(build_metric(section).label)"
    )
    (tmp_path / "ask.py").write_text(code)
    command = [sys.executable, "-c", f"exec(open({str(tmp_path / 'ask.py')!r}).read())"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == f"{module}:count"
