"""Whether a training fits its machine, and the variables of networks and of SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.tools.doctor import placement
from tests.conftest import ROOT
from tests.unit.tools.doctor.test_agreement import gpu


def section(tmp_path: Path, name: str, processes: int, machines: int = 1) -> Train:
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("num_")]
    path = tmp_path / f"{name}.yaml"
    shape = [f"num_processes: {processes}", f"num_machines: {machines}"]
    path.write_text("\n".join([*lines, *shape]), encoding="utf-8")
    bf16 = "cpu" not in name
    return Train(accelerate_config=path, micro_batch_size=1, bf16=bf16)


@pytest.mark.parametrize(
    ("name", "processes", "machines", "gpus", "problem"),
    [
        ("zero3", 8, 1, 8, None),
        ("zero3", 16, 2, 8, None),
        ("zero3", 8, 1, 2, "8 processes for 2 GPUs"),
        ("zero3", 16, 2, 4, "8 processes for 4 GPUs"),
        ("zero3", 8, 1, 0, "8 processes in bfloat16 under ZeRO-3, and no GPU"),
        ("ddp", 2, 1, 0, "2 processes in bfloat16, and no GPU"),
        ("cpu_zero2", 2, 1, 0, None),
        ("cpu", 1, 1, 0, None),
        ("cpu", 1, 1, 8, None),
    ],
)
def test_processes_need_a_place(
    tmp_path: Path, name: str, processes: int, machines: int, gpus: int, problem: str | None
) -> None:
    found = placement.training(section(tmp_path, name, processes, machines), [gpu()] * gpus)
    assert found.state == ("ok" if problem is None else "failed"), found.text
    assert found.text.endswith(problem or "per step")


def test_a_batch_that_cannot_be_shared_is_found(tmp_path: Path) -> None:
    found = placement.training(section(tmp_path, "zero2", 3), [gpu()] * 3)
    assert found.state == "failed" and "is not a multiple of" in found.text


@pytest.mark.parametrize(
    ("variables", "state"),
    [
        ({}, "ok"),
        ({"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "lo"}, "ok"),
        ({"NCCL_SOCKET_IFNAME": "^nothing"}, "ok"),
        ({"NCCL_SOCKET_IFNAME": "=l"}, "failed"),
        ({"NCCL_SOCKET_IFNAME": "ib99,enp99"}, "failed"),
        ({"GLOO_SOCKET_IFNAME": "l"}, "failed"),
        ({"NCCL_IB_DISABLE": "1"}, "warning"),
        ({"NCCL_IB_DISABLE": "0"}, "ok"),
    ],
)
def test_variables_of_the_network_are_shown_and_judged(
    variables: dict[str, str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = placement.network_variables()
    assert found.state == state, found
    assert all(f"{name}={value}" in found.text for name, value in variables.items())


def test_a_slurm_job_has_one_task_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name in ("SLURM_NNODES", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert placement.slurm().text == "no job"
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_NNODES", "2"), ("SLURM_NTASKS", "2")):
        monkeypatch.setenv(name, value)
    assert "SLURM_JOB_ID=7" in placement.slurm().text and placement.slurm().state == "ok"
    monkeypatch.setenv("SLURM_NTASKS", "16")
    assert placement.slurm().state == "warning"
