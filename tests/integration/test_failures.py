"""A training process fails: it is named with what it failed of, and not those that followed it."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.test_training import command, run_file

__all__ = ["run_file"]  # the fixture

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
    run_file: Path, tmp_path: Path, failure: str, words: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(failure=failure))
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", str(ROOT))])
    done = subprocess.run(
        command(
            run_file,
            f"train.accelerate_config={ROOT}/accelerate_configs/cpu_zero2.yaml",
            "preferences.validation_path=null",
        ),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    _, cause = done.stderr.split("error: training failed, ")
    assert cause.startswith(f"rank 1 on {socket.gethostname()} first:\n")
    assert words in cause
    assert "ChildFailedError" not in done.stderr, "torch's summary is left to the log"
    logs = tmp_path / "runs" / "test" / "train" / "logs" / "1"
    assert str(logs) in cause
    names = {path.name for path in logs.iterdir()}
    assert names >= {"rank-0.log", "rank-1.log", "rank-1.error.json", "node-0.log"}
    assert "ChildFailedError" in (logs / "node-0.log").read_text()
