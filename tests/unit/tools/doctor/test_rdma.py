"""NCCL's way to other machines, with the devices in a folder that stands for /."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.tools.doctor import rdma
from dpo_dist.tools.doctor.rdma import transport
from tests.unit.tools.doctor.test_agreement import gpu

BOTH = {"libibverbs.so.1", "libnccl-net.so"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with GPUs, an active InfiniBand port, its device file and libibverbs."""
    for name in ("NCCL_NET", "NCCL_NET_PLUGIN", "NCCL_IB_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rdma, "gpus", lambda: [gpu()])
    monkeypatch.setattr(rdma, "_loads", lambda library: library == "libibverbs.so.1")
    add_port(tmp_path, "mlx5_0", "InfiniBand")
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    return tmp_path


def add_port(root: Path, device: str, layer: str, state: str = "4: ACTIVE") -> None:
    port = root / "sys/class/infiniband" / device / "ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "link_layer").write_text(f"{layer}\n")


def test_devices_that_nccl_uses_are_named(root: Path) -> None:
    add_port(root, "mlx5_1", "InfiniBand", state="1: DOWN")
    found = transport(several=True, root=root)
    assert (found.state, found.text) == ("ok", "mlx5_0")


@pytest.mark.parametrize(
    ("variables", "libraries", "device", "cause"),
    [
        ({"NCCL_IB_DISABLE": "1"}, {"libibverbs.so.1"}, True, "NCCL_IB_DISABLE is set"),
        ({"NCCL_NET": "Socket"}, BOTH, True, "NCCL_NET is Socket"),
        ({}, set(), True, "libibverbs.so.1 cannot be loaded"),
        ({}, {"libibverbs.so.1"}, False, "/dev/infiniband is not accessible"),
        ({"NCCL_NET_PLUGIN": "none"}, {"libnccl-net.so"}, True, "libibverbs.so.1 cannot be loaded"),
        ({}, {"libnccl-net.so"}, False, None),
        ({"NCCL_NET_PLUGIN": "ofi"}, set(), False, None),
        ({"NCCL_IB_DISABLE": "0"}, {"libibverbs.so.1"}, True, None),
    ],
)
def test_sockets_beside_infiniband_fail_several_machines(
    root: Path, monkeypatch: pytest.MonkeyPatch, variables, libraries, device, cause
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rdma, "_loads", libraries.__contains__)
    if not device:
        (root / "dev/infiniband/uverbs0").unlink()
    several, alone = (transport(several=several, root=root) for several in (True, False))
    if cause is None:
        assert several.state == alone.state == "ok"
    else:
        assert (several.state, alone.state) == ("failed", "warning")
        assert several.text == f"NCCL would use sockets beside mlx5_0: {cause}" == alone.text
        assert several.advice


def test_sockets_beside_roce_may_be_intended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "sys/class/infiniband/mlx5_0/ports/1/link_layer").write_text("Ethernet\n")
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert transport(several=True, root=root).state == "warning"


def test_a_machine_without_gpus_or_devices_is_well(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(rdma, "_loads", lambda _: False)
    assert transport(several=True, root=root / "nothing").state == "ok"
    monkeypatch.setattr(rdma, "gpus", list)
    assert transport(several=True, root=root).state == "ok"


def test_a_library_that_is_not_there_is_not_loaded() -> None:
    assert not rdma._loads("libno-such-library.so.1") and rdma._loads("libc.so.6")
