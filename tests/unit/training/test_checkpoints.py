"""Which checkpoint a training goes on from, whatever state the disk is in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.checkpoints import (
    Checkpoint,
    damage,
    last_complete,
    mark_complete,
    seal_files,
)
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.supervise import resume


def write_checkpoint(
    folder: Path, step: int, *, world_size: int = 1, zero_stage: int = 0
) -> Checkpoint:
    path = folder / f"checkpoint-{step}"
    (path / f"global_step{step}").mkdir(parents=True)
    (path / "adapter.safetensors").write_bytes(b"weights" * step)
    (path / f"global_step{step}" / "optimizer.pt").write_bytes(b"moments" * step)
    files = {name: file for part in range(2) for name, file in seal_files(path, part, 2).items()}
    checkpoint = Checkpoint(path, step, world_size, zero_stage)
    mark_complete(checkpoint, files)
    return checkpoint


def tear(checkpoint: Path) -> None:
    (checkpoint / "COMPLETE").unlink()


def shorten(checkpoint: Path) -> None:
    path = next(checkpoint.glob("global_step*")) / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(checkpoint: Path) -> None:
    path = checkpoint / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "adapter.safetensors").unlink()


def tear_the_marker(checkpoint: Path) -> None:
    path = checkpoint / "COMPLETE"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (tear, "writing it was interrupted"),
        (shorten, "global_step20/optimizer.pt has changed"),
        (flip_a_bit, "adapter.safetensors has changed"),
        (lose_a_file, "adapter.safetensors is missing"),
        (tear_the_marker, "COMPLETE is damaged"),
    ],
)
def test_a_harmed_checkpoint_is_named_removed_and_replaced_by_the_one_before(
    tmp_path: Path, capsys, harm: Callable[[Path], None], message: str
) -> None:
    older, newest = write_checkpoint(tmp_path, 8), write_checkpoint(tmp_path, 20)
    assert last_complete(tmp_path) == newest, "steps are numbers: 20 is newer than 8"
    harm(newest.path)
    assert last_complete(tmp_path) == older
    assert f"{newest.path} is incomplete ({message}): removed" in capsys.readouterr().err
    assert not newest.path.exists()
    assert damage(older.path) is None


def test_without_a_whole_checkpoint_training_starts_and_says_so(tmp_path: Path, capsys) -> None:
    assert last_complete(tmp_path / "absent") is None
    assert capsys.readouterr().err == ""
    tear(write_checkpoint(tmp_path, 1).path)
    assert last_complete(tmp_path) is None
    assert "starts from the beginning" in capsys.readouterr().err


def test_the_marker_says_who_wrote_what(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, world_size=2, zero_stage=2).path
    marker = json.loads((path / "COMPLETE").read_text())
    assert (marker["step"], marker["world_size"], marker["zero_stage"]) == (3, 2, 2)
    assert {name: file["bytes"] for name, file in marker["files"].items()} == {
        "adapter.safetensors": 21,
        "global_step3/optimizer.pt": 21,
    }


def make_job(folder: Path, processes: int, stage: int) -> TrainingJob:
    return TrainingJob(
        kind="dpo",
        settings=Train(),
        shape=LaunchShape(processes=processes, zero_stage=stage),
        model="m",
        dtype="float32",
        rows=folder / "rows.parquet",
        planned_peak_bytes={"none": 0, "selective": 0, "full": 0},
        out=folder,
        seed=1,
        run_name="r",
    )


def test_without_zero_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    assert resume(make_job(tmp_path, 1, 0)).checkpoint is None
    checkpoint = write_checkpoint(tmp_path / "checkpoints", 4, world_size=1)
    found = resume(make_job(tmp_path, 8, 0))
    assert (found.checkpoint, found.reshard) == (checkpoint.path, False)


def test_another_zero_stage_is_refused_and_the_checkpoint_kept(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", 4, world_size=2, zero_stage=2)
    with pytest.raises(ConfigError, match=r"without ZeRO, but .* with DeepSpeed ZeRO-2"):
        resume(make_job(tmp_path, 2, 0))
    assert damage(checkpoint.path) is None
    assert resume(make_job(tmp_path, 2, 2)).checkpoint == checkpoint.path
