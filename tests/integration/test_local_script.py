"""`dpo-dist launch local --submit` on a tiny model: SIGTERM goes through, and so do exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_dist.errors import PREEMPTED
from tests.conftest import ROOT
from tests.integration.test_checkpoints import stop
from tests.integration.test_training import losses, run_file

__all__ = ["run_file"]  # the fixture


@pytest.mark.slow
def test_it_stops_on_sigterm_and_goes_on_when_it_is_run_again(
    run_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "test"
    setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"
    words = [sys.executable, "-m", "dpo_dist", "launch", "local", str(run_file), "--setup", setup]
    assert stop([*words, "--submit"], root / "train", signal.SIGTERM) == PREEMPTED
    again = ["bash", str(root / "launch" / "local" / "local.sh")]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(losses(root / "train")) == 6
    first, second = sorted(root.glob("logs/local-*.log"))
    assert "which is saved" in first.read_text() and "train: done in" in second.read_text()
