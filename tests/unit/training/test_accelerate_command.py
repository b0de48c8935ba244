from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import yaml

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError, MissingDependency
from dpo_dist.system.ranks import Nodes
from dpo_dist.training.accelerate_command import (
    check_address,
    check_launch,
    interface_to,
    launcher_command,
    launcher_environment,
    starts_directly,
)
from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "dpo_dist", "train", "run.yaml", "--set", "train.beta=0.2"]
CPU = ROOT / "accelerate_configs" / "cpu.yaml"


def nodes(rank: int = 0, address: str = "127.0.0.1", port: int = 29500, count: int = 2) -> Nodes:
    return Nodes(count, rank, address, port, "id")


def config(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump({"num_processes": 4, "num_machines": 2, **values}))
    return path


def test_a_quantized_base_without_its_package_is_refused(monkeypatch) -> None:
    from dpo_dist.training import accelerate_command

    quantized = Train(method={"type": "lora", "quantization": "nf4"}, accelerate_config=CPU)
    monkeypatch.setattr(accelerate_command, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="bitsandbytes is not installed"):
        check_launch(quantized, None)
    check_launch(Train(accelerate_config=CPU), None)
    monkeypatch.setattr(accelerate_command, "find_spec", lambda name: name)
    check_launch(quantized, None)
    offloaded = ROOT / "accelerate_configs" / "zero3_offload.yaml"
    with pytest.raises(ConfigError, match="offloads the weights"):
        check_launch(quantized.model_copy(update={"accelerate_config": offloaded}), None)


def test_zero_without_deepspeed_is_refused(monkeypatch) -> None:
    from dpo_dist.training import accelerate_command

    monkeypatch.setattr(accelerate_command, "find_spec", lambda name: None)
    sharded = ROOT / "accelerate_configs" / "cpu_zero2.yaml"
    with pytest.raises(MissingDependency, match=r"pip install '?deepspeed"):
        check_launch(Train(accelerate_config=sharded), None)
    check_launch(Train(accelerate_config=CPU), None)


def test_the_other_machines_are_named_on_the_command_line() -> None:
    path = ROOT / "accelerate_configs" / "zero2.yaml"
    alone = launcher_command(COMMAND, path, None)
    assert "--num_machines" not in alone
    words = " ".join(launcher_command(COMMAND, path, nodes(1, "10.0.0.1")))
    for part in (
        "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29500",
        "--rdzv_backend static",
        "--deepspeed_multinode_launcher standard",
        "-m dpo_dist train run.yaml --set train.beta=0.2",
    ):
        assert part in words


@pytest.mark.parametrize("written", [{}, {"deepspeed_multinode_launcher": "pdsh"}])
def test_deepspeed_needs_no_ssh_whatever_the_file_says(tmp_path: Path, written: dict) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    values = yaml.safe_load((ROOT / "accelerate_configs" / "zero2.yaml").read_text())
    path = config(tmp_path, **{**values, "deepspeed_config": values["deepspeed_config"] | written})
    words = launcher_command(COMMAND, path, nodes())
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words[3:]))
    assert args.use_deepspeed and args.deepspeed_multinode_launcher == "standard"


def test_one_process_is_started_without_the_launcher_if_its_file_says_nothing_else(
    tmp_path: Path,
) -> None:
    shipped = ROOT / "accelerate_configs"
    assert launcher_command(COMMAND, shipped / "cpu.yaml", None) == COMMAND
    found = launcher_environment(shipped / "single_gpu.yaml", None, tmp_path)
    assert (found["ACCELERATE_MIXED_PRECISION"], found["ACCELERATE_USE_CPU"]) == ("bf16", "False")
    one = {"num_processes": 1, "num_machines": 1, "distributed_type": "NO"}
    assert starts_directly(config(tmp_path, **one))
    for more in (
        {"dynamo_config": {"dynamo_backend": "INDUCTOR"}},
        {"gpu_ids": "3"},
        {"num_processes": 2},
        {"distributed_type": "DEEPSPEED"},
    ):
        assert not starts_directly(config(tmp_path, **one | more)), more


def test_the_interface_to_an_address_is_found() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.host.invalid") is None


@pytest.mark.parametrize(
    ("values", "given", "message"),
    [
        ({}, None, "is for num_machines 2, but only one was started"),
        ({"num_machines": 3}, nodes(), "is for num_machines 3, but --nodes is 2"),
        (
            {"num_processes": 3},
            nodes(),
            "num_processes 3 counts all machines together and is not divisible by the 2",
        ),
        ({"mixed_precision": "fp16"}, nodes(), "mixed_precision fp16"),
        ({"distributed_type": "MULTI_CPU"}, nodes(), "starts a single process"),
        ({"distributed_type": "FSDP"}, nodes(), "fsdp_version must be 2"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
            nodes(),
            "silently ignores on a CPU",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, values, given, message) -> None:
    monkeypatch.setattr("dpo_dist.training.accelerate_command.has_cuda", lambda: False)
    settings = Train(accelerate_config=config(tmp_path, **values))
    with pytest.raises(ConfigError, match=message):
        check_launch(settings, given)


def test_an_address_is_one_of_node_0_with_a_free_port() -> None:
    with pytest.raises(ConfigError, match="cannot resolve it"):
        check_address(nodes(1, "no.such.host.invalid"))
    with pytest.raises(ConfigError, match="must be an address of node 0"):
        check_address(nodes(0, "192.0.2.1"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--main-port {port}: node 0 cannot listen"):
            check_address(nodes(0, port=port))
        check_address(nodes(1, port=port))
    check_address(nodes(0, port=port))
