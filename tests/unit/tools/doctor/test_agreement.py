"""What preflight says of nodes that differ, or lack something."""

from __future__ import annotations

import re

import pytest

from dpo_dist.system.machine import GIB, Gpu
from dpo_dist.tools.doctor.agreement import compare
from dpo_dist.tools.doctor.bandwidth import assess, measure
from dpo_dist.tools.doctor.facts import Facts
from dpo_dist.tools.doctor.findings import Finding, table


def gpu(free: float = 79, name: str = "H100") -> Gpu:
    return Gpu(index="0", name=name, total=80 * GIB, free=int(free * GIB), driver="580.1")


def facts(rank: int = 0, **values: object) -> Facts:
    defaults = {
        "host": f"host-{rank}",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "run": "r",
        "model": "m",
        "sft": "",
        "processes": 2,
        "wants_gpus": True,
        "gpus": [gpu(), gpu()],
        "memory": 100 * GIB,
        "memory_needed": 40 * GIB,
        "host_needed": 50 * GIB,
        "alternatives": [],
        "disk": 100 * GIB,
        "disk_needed": GIB,
        "rdma": Finding("ok", "mlx5_0"),
        "problems": [],
    }
    return Facts(rank=rank, **{**defaults, **values})


def states(*nodes: Facts) -> dict[str, str]:
    """The checks that are not well on the last node."""
    rows = compare(nodes)
    return {name: found[-1].state for name, found in rows.items() if found[-1].state != "ok"}


def test_nodes_that_are_alike_are_well() -> None:
    assert states(facts(0), facts(1)) == {}


@pytest.mark.parametrize(
    ("values", "check", "state", "words"),
    [
        ({"versions": {"torch": "2.12.0"}}, "versions", "failed", "torch 2.12.0 (node 0: 2.13.0)"),
        ({"versions": {}}, "versions", "failed", "torch is missing (node 0: 2.13.0)"),
        ({"run": "x"}, "run file", "failed", "differs from node 0's"),
        ({"model": "x"}, "model", "failed", "base model: its files differ from node 0's"),
        ({"sft": "x"}, "SFT model", "failed", "the SFT model: its files differ"),
        ({"gpus": [gpu()]}, "devices", "failed", "1 x H100 for 2 processes"),
        ({"gpus": []}, "devices", "failed", "no GPU for 2 processes"),
        ({"gpus": [], "wants_gpus": False}, "devices", "failed", "no GPU"),
        ({"gpus": [gpu(name="A100")] * 2}, "devices", "warning", "node 0 has H100"),
        ({"gpus": [gpu(), gpu(20)]}, "memory", "failed", "20.0 of 80.0 GiB free"),
        ({"gpus": [gpu(), gpu(60)]}, "memory", "warning", "in use by another process"),
        ({"memory": 49 * GIB}, "CPU memory", "failed", "49 GiB free, 50 GiB planned to load"),
        ({"memory": 9 * GIB, "alternatives": ["A", "B"]}, "CPU memory", "failed", "fit: A; or B"),
        ({"gpus": [gpu(20)] * 2, "alternatives": ["A"]}, "memory", "failed", "would fit: A"),
        ({"gpus": [gpu(20)] * 2}, "memory", "failed", "nor more nodes would fit"),
        ({"disk": 0}, "disk", "failed", "0 GiB free, 1 GiB needed"),
        ({"rdma": Finding("failed", "sockets")}, "RDMA", "failed", "sockets"),
        ({"problems": ["port 1 is taken"]}, "configuration", "failed", "port 1 is taken"),
    ],
)
def test_what_a_node_lacks_is_named(values, check, state, words) -> None:
    found = compare([facts(0), facts(1, **values)])[check]
    assert found[0].state == "ok"
    assert (found[1].state, words in found[1].text) == (state, True), found[1].text


def test_a_cpu_run_needs_no_gpu_but_memory() -> None:
    cpu = {"gpus": [], "wants_gpus": False}
    assert states(facts(0, **cpu)) == {}
    assert states(facts(0, **cpu, memory=60 * GIB)) == {"memory": "failed"}


def test_two_commits_of_a_model_are_named() -> None:
    nodes = [facts(0, model="hub:a/b 111"), facts(1, model="hub:a/b 222")]
    first, second = compare(nodes)["model"]
    assert first.text == "111" and second.state == "failed"
    assert second.text == "the base model: hub:a/b 222 (node 0: hub:a/b 111)"


@pytest.mark.parametrize(
    ("backend", "speed", "one_node", "state"),
    [
        ("nccl", 1_100, False, "warning"),  # 10 Gb/s Ethernet, where a plan takes 400 for granted
        ("nccl", 20_000, False, "ok"),
        ("nccl", 1_500, True, "warning"),
        ("nccl", 12_000, True, "ok"),  # PCIe
        ("gloo", 99, False, "ok"),
    ],
)
def test_a_network_far_below_what_is_planned_is_a_warning(
    backend: str, speed: float, one_node: bool, state: str
) -> None:
    found = assess(backend, speed, one_node=one_node)
    assert found.state == state
    assert ("NCCL_SOCKET_IFNAME" in found.advice) == (state == "warning" and not one_node)


def test_all_processes_of_a_box_measure_together() -> None:
    found = measure(None, 2)
    assert found.state == "ok" and re.fullmatch(r"\d+ MB/s \(gloo\)", found.text), found


def test_the_table_has_a_column_for_every_node() -> None:
    rows = compare([facts(0), facts(1, run="x")])
    lines = table(["node 0", "node 1"], rows).splitlines()
    assert lines[0].split() == ["node", "0", "node", "1"]
    assert next(line for line in lines if line.startswith("run file")).split()[-1] == "FAILED"
