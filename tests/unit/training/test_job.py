from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.checkpoints import Checkpoint, last_complete, mark_complete
from dpo_dist.training.job import accumulation_steps, num_processes


def test_the_global_batch_is_what_stays_fixed() -> None:
    settings = Train(global_batch_size=16, micro_batch_size=2)
    assert [accumulation_steps(settings, n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(ConfigError, match="16 is not a multiple of micro_batch_size 2 x 3"):
        accumulation_steps(settings, 3)


def test_an_unreadable_accelerate_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        num_processes(tmp_path / "absent.yaml")
    (tmp_path / "empty.yaml").write_text("num_machines: 1\n")
    with pytest.raises(ConfigError, match="no readable `num_processes`"):
        num_processes(tmp_path / "empty.yaml")


def test_a_half_written_checkpoint_is_never_resumed_from(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "shard").mkdir()
        (tmp_path / f"checkpoint-{step}" / "shard" / "weights").write_bytes(b"x" * step)
    mark_complete(tmp_path / "checkpoint-5", world_size=1)
    mark_complete(tmp_path / "checkpoint-10", world_size=2)
    assert last_complete(tmp_path) == Checkpoint(tmp_path / "checkpoint-10", 10, 2)
    assert not (tmp_path / "checkpoint-15").exists()
    assert last_complete(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["bytes", "missing", "marker"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, capsys, damage: str
) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_bytes(b"x" * step)
        mark_complete(tmp_path / f"checkpoint-{step}", world_size=1)
    newest = tmp_path / "checkpoint-10"
    if damage == "bytes":
        (newest / "weights").write_bytes(b"x" * 9 + b"y")
    elif damage == "missing":
        (newest / "weights").unlink()
    else:
        (newest / "COMPLETE").write_text('{"files": ')
    assert last_complete(tmp_path) == Checkpoint(tmp_path / "checkpoint-5", 5, 1)
    assert "checkpoint-10 is not whole" in capsys.readouterr().err
    assert not newest.exists()
