"""When a checkpoint is due; a seal in the background, interrupted at every moment."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import PhaseFailed
from dpo_dist.training import checkpoints
from dpo_dist.training.checkpoints import Checkpoint, damage, last_complete, written_files
from dpo_dist.training.sealing import BackgroundSeal, SaveSchedule


def saves(steps: int, step_seconds: float, write_seconds: float, **settings: object) -> list[int]:
    """The steps after which a run of `steps` saves."""
    schedule, now, saved = SaveSchedule(Train(**settings)), 1e6, []
    schedule.begin(0, steps, now)
    for step in range(1, steps):
        now += step_seconds
        if schedule.due(step, now):
            now += write_seconds
            schedule.saved(step, now, write_seconds)
            saved.append(step)
    return saved


def test_a_short_run_has_checkpoints_and_writing_them_takes_a_small_share() -> None:
    assert saves(20, 5, 0.1) == [5, 10, 15]
    assert saves(3, 5, 0.1) == [1, 2]
    # 20 minutes with 100 GB at 1 GB/s: writing may take a twentieth of the time.
    assert saves(478, 2.5, 100) == [120]
    # A day: half an hour apart.
    long = saves(10_000, 9, 60)
    assert {b - a for a, b in itertools.pairwise(long)} == {200}


def test_explicit_settings_are_obeyed() -> None:
    assert saves(10, 1, 1000, save_steps=3) == [3, 6, 9]
    assert saves(10, 60, 1000, save_minutes=2) == [2, 4, 6, 8]
    assert saves(100, 60, 0, save_steps=40, save_minutes=None) == [40, 80]
    assert saves(100, 60, 0, save_steps=40) == [30, 60, 90], "whichever comes first"
    assert saves(8, 1e6, 0, save_minutes=None) == [2, 4, 6]


def test_a_resumed_training_counts_from_where_it_resumes() -> None:
    schedule = SaveSchedule(Train(save_steps=10))
    schedule.begin(7, 100, 0.0)
    assert next(step for step in range(8, 30) if schedule.due(step, 1.0)) == 17


def write(folder: Path, step: int) -> tuple[Checkpoint, dict[str, int]]:
    path = folder / f"checkpoint-{step}"
    shards = path / "optimizer_0"  # as torch.distributed.checkpoint names them
    shards.mkdir(parents=True)
    content = random.Random(step).randbytes(5000)
    for file in (path / "a.safetensors", shards / ".metadata", shards / "__0_0.distcp"):
        file.write_bytes(content)
    return Checkpoint(path, step, 1, "FSDP"), written_files(path)


def steps(folder: Path) -> list[int]:
    found = folder.glob("checkpoint-*")
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in found)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    seal = BackgroundSeal(keep=2)
    for step in range(1, 7):
        seal.start(*write(tmp_path, step), best=2)
        seal.wait()
    assert steps(tmp_path) == [2, 5, 6]
    assert all(damage(path) is None for path in tmp_path.iterdir())


def test_a_checkpoint_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    """With keep=1 the one before it is the only complete one."""
    seal = BackgroundSeal(keep=1)
    write(tmp_path, 1)  # was never sealed
    sealed = write(tmp_path, 2)
    write(tmp_path, 3)
    seal.start(*sealed, best=None)
    seal.wait()
    assert steps(tmp_path) == [2, 3]
    assert last_complete(tmp_path) == sealed[0]


def test_files_of_other_machines_are_awaited_and_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = BackgroundSeal(keep=1)
    checkpoint, written = write(tmp_path, 1)
    seal.start(checkpoint, written | {"late.bin": 4}, None)
    (checkpoint.path / "late.bin").write_bytes(b"ab")
    time.sleep(0.3)
    assert damage(checkpoint.path) == "writing it was interrupted"
    (checkpoint.path / "late.bin").write_bytes(b"abcd")
    seal.wait()
    assert damage(checkpoint.path) is None

    monkeypatch.setattr(checkpoints, "VISIBLE_SECONDS", 0.2)
    checkpoint, written = write(tmp_path, 2)
    seal.start(checkpoint, written | {"never.bin": 4}, None)
    with pytest.raises(PhaseFailed, match=r"never.bin: 4 bytes were written, but this machine"):
        seal.wait()
    seal.wait()  # the error is raised once
    assert last_complete(tmp_path).step == 1


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a child process, and return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_training_killed_while_it_seals_resumes_from_the_checkpoint_before(
    tmp_path: Path,
) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)

    def work() -> None:
        seal = BackgroundSeal(keep=1)
        seal.start(*older, best=None)
        seal.wait()
        # It waits for a file, so it cannot be done when the process is killed.
        seal.start(newer[0], newer[1] | {"late.bin": 1}, None)
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    assert steps(tmp_path) == [1, 2]
    assert last_complete(tmp_path) == older[0]
    assert steps(tmp_path) == [1], "the incomplete one is removed"


def test_a_crash_at_any_file_operation_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    """A process seals two checkpoints and keeps one. It ends at its first, second, ... operation on
    a file, until it gets to the end."""
    results = []
    for moment in range(1, 1000):
        folder = tmp_path / str(moment)
        older, newer = write(folder, 1), write(folder, 2)
        if in_child(partial(_seal_until, folder, moment, older, newer)) == 0:
            assert steps(folder) == [2]
            break
        found = last_complete(folder)
        results.append(found.step if found else 0)
        problems = {damage(path) for path in folder.iterdir()}
        assert problems <= {None, "writing it was interrupted"}, "half removed is not complete"
    assert results == sorted(results), "the later the crash, the newer the checkpoint"
    assert set(results) == {0, 1, 2} and results.count(0) < results.count(1)


def _seal_until(folder: Path, last: int, *written: tuple[Checkpoint, dict[str, int]]) -> None:
    left = last

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        opens = event == "open" and str(folder) in str(arguments[0])
        if opens or event in ("os.rename", "os.remove", "os.rmdir"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    seal = BackgroundSeal(keep=1)
    sys.addaudithook(count)
    for checkpoint, files in written:
        seal.start(checkpoint, files, None)
        seal.wait()
