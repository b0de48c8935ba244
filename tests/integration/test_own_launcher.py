"""A user's own `accelerate launch` or torchrun starts a training: as `dpo-dist train` does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.trainings import (
    ACCELERATE_CONFIGS,
    await_checkpoint,
    command,
    losses,
    saved,
)

ACCELERATE = ["accelerate.commands.launch", "--main_process_port", "0", "--config_file"]


def start(launcher: list[str], run_file: Path, log: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", *launcher, *command(run_file)[1:]]
    with log.open("wb") as file:
        return subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of its ranks, in order."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in found}
    ranks = {
        int(entry.removeprefix(b"RANK=")): int(pid)
        for pid, entries in environments.items()
        for entry in entries
        if entry.startswith(b"RANK=")
    }
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.slow
def test_accelerate_launch_trains_as_dpo_dist_does_also_after_a_signal_and_a_death(
    long_file: Path, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    expected = losses(whole("cpu_zero2"))
    folder, logs = tmp_path / "runs" / "test" / "train", iter(range(9))
    launcher = [*ACCELERATE, str(ACCELERATE_CONFIGS / "cpu_zero2.yaml")]

    def launched() -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"{next(logs)}.log"
        return start(launcher, long_file, log), log

    process, log = launched()
    await_checkpoint(folder, [process], 0)
    process.terminate()
    assert process.wait(timeout=120) != 0
    [stopped] = re.findall(
        r"training was stopped after step (\d+), which is saved", log.read_text()
    )
    assert saved(folder) == int(stopped) < len(expected)

    process, log = launched()
    killed_at = await_checkpoint(folder, [process], int(stopped))
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    said = log.read_text()
    assert said.count(f"resuming from step {stopped}") == 1, "rank 0 alone speaks"
    assert "error: training failed, rank 0" in said and "another rank has ended" in said
    assert not (folder / "manifest.json").exists()

    process, log = launched()
    assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    resumed = re.search(r"resuming from step (\d+)", log.read_text())
    assert resumed and int(resumed[1]) >= killed_at
    assert losses(folder) == pytest.approx(expected, abs=1e-6)
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2
    last = folder / "logs" / "3"
    assert sorted(path.name for path in last.iterdir()) == ["rank-0.log", "rank-1.log"]
    assert "train: 100 %" in (last / "rank-0.log").read_text()

    process, log = launched()
    assert process.wait(timeout=120) == 0
    assert log.read_text().count("already done") == 1
    assert not (folder / "logs" / "4").exists()


@pytest.mark.slow
def test_processes_that_cannot_share_the_batch_are_refused_before_any_work(
    training_file: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(["torch.distributed.run", "--nproc-per-node", "3"], training_file, log)
    assert process.wait(timeout=120) != 0
    said = log.read_text()
    message = "error: global_batch_size 4 is not a multiple of micro_batch_size 1 x 3 processes"
    assert said.count(message) == 1
    assert set(re.findall(r"exitcode *: (-?\d+)", said)) == {"2"}, "all ranks end as rank 0 does"
    assert not (tmp_path / "runs").exists()
