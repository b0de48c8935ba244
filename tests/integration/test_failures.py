"""A training process fails: it is named with what it failed of, and not those that followed it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.trainings import shipped, train

# Python runs it at the start of every process; it lets rank 1 fail where it reads its rows.
SITE = """
import os

if os.environ.get("RANK") == "1":
    from torch.utils.data import DataLoader

    def fail(self):
        {failure}

    DataLoader.__iter__ = fail
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("raise RuntimeError('a planted failure')", "RuntimeError: a planted failure"),
        ("os.kill(os.getpid(), 9)", "it was killed by SIGKILL: out of memory, or"),
    ],
    ids=["raises", "killed"],
)
def test_the_rank_that_failed_first_is_the_cause(
    training_file: Path,
    tmp_path: Path,
    failure: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(failure=failure))
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", str(ROOT))])
    monkeypatch.setenv("PYTHONPATH", path)
    settings = (shipped("cpu_zero2"), "preferences.validation=null")
    assert train(training_file, *settings) == 1
    said = capfd.readouterr().err
    _, cause = said.split("error: training failed, ")
    assert cause.startswith(f"rank 1 on {socket.gethostname()} first:\n")
    assert words in cause
    assert "ChildFailedError" not in said, "torch's summary is left to the log"
    logs = tmp_path / "runs" / "test" / "train" / "logs" / "1"
    assert str(logs) in cause
    names = {path.name for path in logs.iterdir()}
    assert names >= {"rank-0.log", "rank-1.log", "rank-1.error.json", "node-0.log"}
    assert "ChildFailedError" in (logs / "node-0.log").read_text()
