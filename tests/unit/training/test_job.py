from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.checkpoints import last_complete, mark_complete
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
    mark_complete(tmp_path / "checkpoint-5")
    mark_complete(tmp_path / "checkpoint-10")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert last_complete(tmp_path / "absent") is None
