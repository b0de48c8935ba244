"""The shape of a launch: from an accelerate configuration, and from a launcher's environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from dpo_dist.config import Train
from dpo_dist.config.training import ACCELERATE_CONFIGS, accelerate_file
from dpo_dist.errors import ConfigError
from dpo_dist.system import ranks
from dpo_dist.training.accelerate_command import check_launched
from dpo_dist.training.launch_shape import LaunchShape, read_accelerate_config

SHIPPED = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))


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


def launched(path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Set the variables that `accelerate launch` sets for a configuration, and torchrun's."""
    for name in ranks.launcher_variables():
        monkeypatch.delenv(name)
    machines = LaunchShape.read(path).machines
    words = ["--config_file", str(path), "--main_process_port", "0", *options]
    if machines > 1:
        words += ["--main_process_ip", "localhost", "--machine_rank", "1"]
        words += ["--deepspeed_multinode_launcher", "standard"]
    parsed = launch_command_parser().parse_args([*words, "run.py"])
    args, *_ = _validate_launch_command(parsed)
    args.deepspeed_fields_from_accelerate_config = ""
    if args.use_deepspeed:
        _, environment = prepare_deepspeed_cmd_env(args)
    elif args.multi_gpu or args.use_fsdp:
        environment = prepare_multi_gpu_env(args)
    else:
        _, environment = prepare_simple_launcher_cmd_env(args)
    if args.use_deepspeed or args.multi_gpu or args.use_fsdp:
        environment |= {
            "TORCHELASTIC_RUN_ID": "none",
            "WORLD_SIZE": str(args.num_processes),
            "LOCAL_WORLD_SIZE": str(args.num_processes // machines),
        }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_launcher_s_environment_has_the_shape_of_its_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ACCELERATE_CONFIGS / f"{name}.yaml"
    expected = LaunchShape.read(path)
    launched(path, monkeypatch)
    assert ranks.launched()
    found = LaunchShape.of(Train(accelerate_config="nowhere.yaml"))
    assert found == expected.model_copy(update={"one_process": False})


def test_a_launcher_s_deepspeed_file_and_its_default_stage_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"num_processes": 2, "distributed_type": "DEEPSPEED", "deepspeed_config": {}}
    config, file = tmp_path / "accelerate.yaml", tmp_path / "deepspeed.json"
    for deepspeed, stage, offloads in (
        ({"gradient_clipping": "auto"}, 2, False),
        ({"zero_stage": 1}, 1, False),
        ({"zero_stage": 3, "offload_param_device": "cpu"}, 3, False),
        ({"deepspeed_config_file": str(file)}, 3, True),
    ):
        device = {"device": "cpu"}
        zero = {"stage": 3, "offload_param": device, "offload_optimizer": device}
        file.write_text(json.dumps({"zero_optimization": zero}))
        config.write_text(yaml.safe_dump(values | {"deepspeed_config": deepspeed}))
        launched(config, monkeypatch)
        found = LaunchShape.of_launcher()
        assert (found.processes, found.zero_stage, found.offloads) == (2, stage, offloads)
        assert found == LaunchShape.read(config)
    file.unlink()
    with pytest.raises(ConfigError, match="DeepSpeed configuration"):
        LaunchShape.of_launcher()


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (("--mixed_precision", "fp16"), {}, "the launcher: mixed_precision fp16"),
        (("--mixed_precision", "bf16"), {"bf16": False}, "`bf16` is false"),
    ],
)
def test_a_launcher_that_contradicts_the_run_file_is_refused(
    options, settings, message, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(ACCELERATE_CONFIGS / "cpu.yaml", monkeypatch)
    check_launched(Train(**settings))
    launched(ACCELERATE_CONFIGS / "cpu.yaml", monkeypatch, *options)
    with pytest.raises(ConfigError, match=message):
        check_launched(Train(**settings))


def test_a_name_is_a_shipped_file_and_without_one_the_gpus_decide(tmp_path: Path) -> None:
    for name in SHIPPED:
        assert accelerate_file(Path(name), 0) == ACCELERATE_CONFIGS / f"{name}.yaml"
    for gpus, name in ((0, "cpu"), (1, "single_gpu"), (8, "zero2")):
        assert accelerate_file(None, gpus).stem == name
    own = tmp_path / "zero2.yaml"
    assert accelerate_file(own, 0) == own
    with pytest.raises(ConfigError, match=r"zero4: no such file or name; names: cpu, .*zero3_off"):
        accelerate_file(Path("zero4"), 0)
    with pytest.raises(ConfigError, match=r"is named `zero2`"):
        LaunchShape.read(own)


def test_under_a_name_each_gpu_gets_a_process_and_a_file_says_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_dist.training.launch_shape.has_cuda", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    counted = {name: LaunchShape.read(accelerate_file(Path(name), 3)) for name in SHIPPED}
    for name, shape in counted.items():
        several = name in ("multi_node_zero3", "ddp", "fsdp2") or name.startswith("zero")
        machine = 3 if several else 2 if name.startswith("cpu_") else 1
        assert shape.per_machine == machine, name
    own = tmp_path / "zero2.yaml"
    own.write_text((ACCELERATE_CONFIGS / "zero2.yaml").read_text())
    assert read_accelerate_config(own)["num_processes"] == 8
