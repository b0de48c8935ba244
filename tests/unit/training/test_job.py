from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.job import accumulation_steps, launch_shape, num_processes


def test_the_global_batch_is_what_stays_fixed() -> None:
    settings = Train(global_batch_size=16, micro_batch_size=2)
    assert [accumulation_steps(settings, n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(ConfigError, match="16 is not a multiple of micro_batch_size 2 x 3"):
        accumulation_steps(settings, 3)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "advice"),
    [
        (4, 4, 8, "micro_batch_size 1 with 4 processes, or global_batch_size 32"),
        (16, 8, 4, "micro_batch_size 4, or global_batch_size 32"),
        (6, 2, 4, "micro_batch_size 2 with 3 processes, or global_batch_size 8"),
    ],
)
def test_what_would_do_is_said(batch: int, micro: int, processes: int, advice: str) -> None:
    settings = Train(global_batch_size=batch, micro_batch_size=micro)
    with pytest.raises(ConfigError, match=advice):
        accumulation_steps(settings, processes)


def test_an_unreadable_accelerate_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        num_processes(tmp_path / "absent.yaml")
    (tmp_path / "empty.yaml").write_text("num_machines: 1\n")
    with pytest.raises(ConfigError, match="cannot read `num_processes`"):
        num_processes(tmp_path / "empty.yaml")


def test_the_zero_stage_is_read_from_a_deepspeed_file_too(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.json").write_text('{"zero_optimization": {"stage": 3}}')
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "num_processes: 4\n"
        f"deepspeed_config: {{deepspeed_config_file: {tmp_path}/deepspeed.json}}\n"
    )
    assert launch_shape(config) == (4, 3)
    config.write_text("num_processes: 1\n")
    assert launch_shape(config) == (1, 0)
