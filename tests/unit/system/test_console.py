import io
import re
from pathlib import Path

import pytest

from dpo_dist.errors import ConfigError
from dpo_dist.system import console, ranks
from dpo_dist.system.console import (
    LOG,
    QUIET,
    TERMINAL,
    confirm,
    keep_log,
    progress,
    say,
    scrub,
    show_error,
    show_result,
    start_log,
    warn,
)
from tests.console_text import TIME, without_times


def test_secrets_are_scrubbed_by_shape_and_by_value(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain-looking")
    text = scrub("sk-ant-api03-abc_DEF and plain-looking and Authorization: Bearer abc.def-12345")
    assert text == "<secret> and <WANDB_API_KEY> and Authorization: Bearer <secret>"
    assert scrub("nothing to hide") == "nothing to hide"


def test_only_rank_0_speaks(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    say("hidden")
    with progress("p", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    say("shown")
    assert without_times(capsys.readouterr().err) == "shown"


@pytest.mark.parametrize("terminal", ["", "1"])
def test_a_resumed_bar_starts_where_it_stopped(monkeypatch, capsys, terminal: str) -> None:
    monkeypatch.setenv(TERMINAL, terminal)
    with progress("sample", 10, done=4) as advance:
        advance(6, "half way")
    said = capsys.readouterr().err
    assert "sample: " in said and "10/10" in said and ", half way" in said
    assert ("\r" in said) == bool(terminal)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds_each", "shares"),
    [
        (0.01, [100]),  # a fast phase has one line
        (1.0, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (0.5, [20, 40, 60, 80, 100]),  # at most one in ten seconds
        (30.0, list(range(2, 101, 2))),  # at least one a minute
    ],
)
def test_lines_of_progress_are_few(
    monkeypatch, capsys, seconds_each: float, shares: list[int]
) -> None:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    with progress("train", 100) as advance:
        for _ in range(100):
            clock.now += seconds_each
            advance(1, "loss 0.5")
    lines = without_times(capsys.readouterr().err).splitlines()
    assert [int(re.findall(r"train: (\d+) % \(", line)[0]) for line in lines] == shares
    assert lines[-1].endswith(" elapsed, 00:00 remaining, loss 0.5")


def test_an_interrupted_phase_says_how_far_it_came(capsys) -> None:
    with pytest.raises(KeyboardInterrupt), progress("judge", 8) as advance:
        advance(3)
        raise KeyboardInterrupt
    assert "judge: 38 % (3/8)" in capsys.readouterr().err


def test_quiet_leaves_warnings_errors_results_and_questions(monkeypatch, capsys) -> None:
    monkeypatch.setenv(QUIET, "1")
    monkeypatch.setenv(console.YES, "1")
    say("hidden")
    confirm("costs $1")
    with progress("sample", 1) as advance:
        advance(1)
    warn("w")
    show_error("e")
    show_result("r")
    monkeypatch.delenv(console.YES)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(console.NotConfirmed):
        confirm("costs $2")
    said = capsys.readouterr()
    assert re.sub(TIME, "", said.err) == "warning: w\nerror: e\ncosts $2\n"
    assert said.out == "r\n"


@pytest.mark.parametrize("quiet", ["", "1"])
@pytest.mark.parametrize("terminal", ["", "1"])
def test_a_run_s_log_has_everything_that_was_said(
    tmp_path: Path, monkeypatch, capsys, quiet: str, terminal: str
) -> None:
    monkeypatch.setenv(QUIET, quiet)
    monkeypatch.setenv(TERMINAL, terminal)
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    log = tmp_path / "runs" / "x" / "run.log"
    with pytest.raises(ConfigError), keep_log(log):
        raise ConfigError("before any work")
    assert not log.parent.exists()
    with keep_log(log):
        start_log("run.yaml: sample")
        say("sample: secret-token")
        with progress("sample", 4) as advance:
            advance(4)
        show_result("\nthe table")
    with pytest.raises(ConfigError), keep_log(log):
        raise ConfigError("wrong")
    with pytest.raises(ZeroDivisionError), keep_log(log):
        _ = 1 / 0
    say("after")
    first, _, rest = log.read_text().partition("Traceback")
    assert without_times(first).splitlines() == [
        *("run.yaml: sample", "sample: <HF_TOKEN>"),
        *("sample: 100 % (4/4), 00:00 elapsed, 00:00 remaining", "the table", "error: wrong"),
    ]
    assert "ZeroDivisionError" in rest and "after" not in rest
    assert LOG not in console.os.environ


def test_the_launcher_s_variables_are_forgotten(monkeypatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "PET_NNODES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOME_SWEET_HOME", "1")
    ranks.strip_launcher_variables()
    import os

    assert "HOME_SWEET_HOME" in os.environ
    assert not {"RANK", "MASTER_ADDR", "PET_NNODES"} & set(os.environ)
    assert ranks.world_size() == 1 and ranks.is_main()
    with pytest.raises(KeyError):
        os.environ["TORCHELASTIC_RUN_ID"]
