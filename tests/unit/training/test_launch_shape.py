from pathlib import Path

import pytest

from dpo_dist.errors import ConfigError
from dpo_dist.training.launch_shape import LaunchShape


def test_an_unreadable_accelerate_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        LaunchShape.read(tmp_path / "absent.yaml")
    (tmp_path / "empty.yaml").write_text("num_machines: 1\n")
    with pytest.raises(ConfigError, match="cannot read `num_processes`"):
        LaunchShape.read(tmp_path / "empty.yaml")


def test_the_zero_stage_is_read_from_a_deepspeed_file_too(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.json").write_text('{"zero_optimization": {"stage": 3}}')
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "num_processes: 4\n"
        f"deepspeed_config: {{deepspeed_config_file: {tmp_path}/deepspeed.json}}\n"
    )
    shape = LaunchShape.read(config)
    assert (shape.processes, shape.zero_stage) == (4, 3)
    config.write_text("num_processes: 1\n")
    assert LaunchShape.read(config) == LaunchShape()
