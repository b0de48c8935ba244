"""Trainings with ZeRO that are stopped continue on another number of processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.errors import PREEMPTED
from dpo_dist.training.checkpoints import damage
from tests.integration.trainings import (
    STEPS,
    command,
    losses,
    newest,
    saved,
    shipped,
    stop,
    train,
    variant,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "test" / "train"


@pytest.mark.slow
def test_zero_2_continues_after_a_kill_and_on_another_number_of_processes(
    long_file: Path,
    folder: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    two, one = shipped("cpu_zero2"), variant(tmp_path, "cpu_zero2", num_processes=1)
    expected = losses(whole("cpu_zero2"))
    # In the second epoch, whose order differs from that of the first.
    stop(command(long_file, two), folder, signal.SIGKILL, group=True, after=STEPS)
    assert stop(command(long_file, two), folder, signal.SIGTERM, after=saved(folder) + 2) == (
        PREEMPTED
    )
    resumed = losses(folder)
    assert resumed == pytest.approx(expected[: len(resumed)], abs=1e-6)

    capfd.readouterr()
    assert stop(command(long_file, one), folder, signal.SIGTERM, after=saved(folder)) == PREEMPTED
    assert "converting its shards from 2 to 1 process" in capfd.readouterr().err
    assert len(resumed) < len(losses(folder)) < len(expected)
    assert not (folder / "manifest.json").exists()
    assert train(long_file, two) == 0
    assert "converting its shards from 1 to 2 processes" in capfd.readouterr().err
    assert losses(folder) == pytest.approx(expected, abs=2e-5)


@pytest.mark.slow
def test_zero_3_stopped_as_a_group_continues_on_one_process_and_back(
    long_file: Path, folder: Path, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    two, one = shipped("cpu_zero3"), variant(tmp_path, "cpu_zero3", num_processes=1)
    expected = losses(whole("cpu_zero3"))
    for configuration in (two, one):
        before = saved(folder)
        words = command(long_file, configuration)
        assert stop(words, folder, signal.SIGTERM, group=True, after=before) == PREEMPTED
        assert damage(newest(folder)) is None
        assert before < len(losses(folder)) < len(expected)
    assert train(long_file, two) == 0
    assert losses(folder) == pytest.approx(expected, abs=2e-5)
