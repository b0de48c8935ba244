from pathlib import Path

import pytest

from dpo_dist.system import machine
from dpo_dist.system.machine import available_memory, visible, visible_gpus

SMI = """0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 81000, 580.82.07
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 1000, 580.82.07
"""


def test_the_visible_gpus_are_the_driver_s_that_the_variable_leaves() -> None:
    assert [found.index for found in visible(SMI, None)] == ["0", "1"]
    assert [found.free for found in visible(SMI, "1")] == [1000 * 2**20]
    assert [found.index for found in visible(SMI, "GPU-bbbb")] == ["1"]
    assert visible(SMI, "") == [] == visible("", None)


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(None, ["0", "1"]), ("1,GPU-aaaa", ["1", "GPU-aaaa"]), ("", []), ("-1", []), (" 0 , ", ["0"])],
)
def test_cuda_sees_what_its_variable_names_and_else_all(
    allowed: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    monkeypatch.setattr(machine, "gpus", lambda: visible(SMI, None))
    assert visible_gpus() == expected


def test_the_free_memory_is_linux_s_estimate() -> None:
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        if line.startswith("MemTotal:")
    )
    assert 0 < available_memory() < total


def test_a_container_s_limit_counts_if_it_is_lower(tmp_path: Path) -> None:
    free = available_memory()
    files = {
        "memory.max": f"{2**30}\n",
        "memory.current": f"{2**29}\n",
        "memory.stat": f"anon 7\ninactive_file {2**28}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == 2**30 - 2**29 + 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == pytest.approx(free, rel=0.2)
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory(tmp_path) == 0
