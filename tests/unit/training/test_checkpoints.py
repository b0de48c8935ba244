"""Which checkpoint a training goes on from, whatever state the disk is in."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.errors import ConfigError
from dpo_dist.storage import digests
from dpo_dist.training.checkpoints import (
    Checkpoint,
    damage,
    last_complete,
    seal,
    written_files,
)
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.supervise import resume
from tests.training_jobs import training_job


def write_checkpoint(
    folder: Path, step: int, *, world_size: int = 1, zero_stage: int = 0, fsdp: bool = False
) -> Checkpoint:
    path = folder / f"checkpoint-{step}"
    (path / f"global_step{step}").mkdir(parents=True)
    (path / "adapter.safetensors").write_bytes(b"weights" * step)
    (path / f"global_step{step}" / "optimizer.pt").write_bytes(b"moments" * step)
    sharding = LaunchShape(zero_stage=zero_stage, fsdp=fsdp).sharding
    checkpoint = Checkpoint(path, step, world_size, sharding)
    seal(checkpoint, written_files(path))
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
    assert (marker["step"], marker["world_size"]) == (3, 2)
    assert marker["sharding"] == "DeepSpeed ZeRO-2"
    assert {name: file["bytes"] for name, file in marker["files"].items()} == {
        "adapter.safetensors": 21,
        "global_step3/optimizer.pt": 21,
    }


def make_job(folder: Path, processes: int, stage: int, *, fsdp: bool = False) -> TrainingJob:
    return training_job(folder, shape=LaunchShape(processes=processes, zero_stage=stage, fsdp=fsdp))


def test_without_zero_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    assert resume(make_job(tmp_path, 1, 0)).checkpoint is None
    checkpoint = write_checkpoint(tmp_path / "checkpoints", 4, world_size=1)
    found = resume(make_job(tmp_path, 8, 0))
    assert (found.checkpoint, found.reshard) == (checkpoint.path, False)


def test_fsdp_needs_no_conversion_for_another_number_of_processes(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", 4, world_size=2, fsdp=True)
    found = resume(make_job(tmp_path, 8, 0, fsdp=True))
    assert (found.checkpoint, found.reshard) == (checkpoint.path, False)


def test_another_sharding_is_refused_and_the_checkpoint_kept(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", 4, world_size=2, zero_stage=2)
    with pytest.raises(ConfigError, match=r"with no sharding, but .* with DeepSpeed ZeRO-2"):
        resume(make_job(tmp_path, 2, 0))
    with pytest.raises(ConfigError, match=r"with FSDP, but .* with DeepSpeed ZeRO-2"):
        resume(make_job(tmp_path, 2, 0, fsdp=True))
    assert damage(checkpoint.path) is None
    assert resume(make_job(tmp_path, 2, 2)).checkpoint == checkpoint.path


def _flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _cut(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _extend(content: bytearray, draw: random.Random) -> None:
    content += draw.randbytes(draw.randint(1, 200))


def _empty_a_block(content: bytearray, draw: random.Random) -> None:
    """As a file system may leave a block that a power failure kept from the disk."""
    at, size = draw.randrange(len(content)), draw.randint(1, 100)
    content[at : at + size] = bytes(len(content[at : at + size]))


def _swap_blocks(content: bytearray, draw: random.Random) -> None:
    a, b = CHUNK * draw.randrange(3), CHUNK * draw.randrange(3, 6)
    content[a : a + CHUNK], content[b : b + CHUNK] = content[b : b + CHUNK], content[a : a + CHUNK]


CHUNK = 64


@pytest.mark.parametrize("harm", [_flip, _cut, _extend, _empty_a_block, _swap_blocks])
def test_any_damage_to_any_file_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[bytearray, random.Random], None],
) -> None:
    monkeypatch.setattr(digests, "CHUNK_BYTES", CHUNK)
    draw = random.Random(harm.__name__)
    path = tmp_path / "checkpoint-3"
    (path / "optimizer_0").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer_0/.metadata", "optimizer_0/__1_0.distcp"):
        (path / name).write_bytes(draw.randbytes(7 * CHUNK + 5))
    checkpoint = Checkpoint(path, 3, 2)
    seal(checkpoint, written_files(path))
    assert last_complete(tmp_path) == checkpoint
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) == 4, "with the marker"
    for file in files:
        whole = file.read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            harm(content, draw)
            file.write_bytes(content)
            # White space in the marker is the only part that may change.
            same = file.name == "COMPLETE" and _values(bytes(content)) == _values(whole)
            assert same or content == whole or damage(path), (file.name, content)
        file.write_bytes(whole)
        assert damage(path) is None


def _values(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_file_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path, 3)
    if os.geteuid() == 0:
        # Root may read everything: a file that is replaced by a loop of links cannot be opened.
        path = checkpoint.path / "adapter.safetensors"
        path.unlink()
        path.symlink_to(path.name)
        assert damage(checkpoint.path) == "adapter.safetensors is missing"
        return
    (checkpoint.path / "adapter.safetensors").chmod(0)
    assert "cannot be read" in str(damage(checkpoint.path))
