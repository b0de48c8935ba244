"""Settings of a training process, read back in processes of their own: they are made once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.data.rows import write_parquet
from dpo_dist.system import machine
from tests.conftest import ROOT
from tests.training_jobs import training_job
from tests.unit.system.test_processes import alive

GLOO = "GLOO_SOCKET_IFNAME"
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "DS_ACCELERATOR")
PRELOAD = "LD_PRELOAD"
PREPARE = """
import json, os, sys
from dpo_dist.training import process
process.has_cuda, process.usable_cores = lambda: {cuda}, lambda: 16
process.prepare()
assert "torch" not in sys.modules, "it would have read its settings before"
"""
SHOW = f"print(json.dumps([os.environ.get(name, '') for name in {NAMES}]))"


def python(program: str, given: dict[str, str]) -> str:
    # An earlier test may have loaded vLLM, which preloads OpenMP in the processes that follow.
    unset = (*NAMES, PRELOAD)
    surroundings = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=surroundings | given,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("cuda", "given", "expected"),
    [
        (False, {}, ["16", "PASSIVE", "", "cpu"]),
        # accelerate and torchrun set one thread for each of several processes.
        (
            True,
            {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "8"},
            ["2", "PASSIVE", "expandable_segments:True", ""],
        ),
        (True, {"LOCAL_WORLD_SIZE": "64"}, ["1", "PASSIVE", "expandable_segments:True", ""]),
        # What the user sets stays.
        (
            True,
            {
                "OMP_NUM_THREADS": "3",
                "OMP_WAIT_POLICY": "ACTIVE",
                "PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8",
            },
            ["3", "ACTIVE", "garbage_collection_threshold:0.8", ""],
        ),
        (
            True,
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "OMP_WAIT_POLICY": "ACTIVE"},
            ["16", "ACTIVE", "", ""],
        ),
    ],
)
def test_the_environment_is_set_where_the_user_has_not(cuda, given, expected) -> None:
    assert json.loads(python(PREPARE.format(cuda=cuda) + SHOW, given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, "lo"),
        ({"MASTER_ADDR": "no.such.host.invalid", "WORLD_SIZE": "2"}, ""),
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", GLOO: "eth7"}, "eth7"),
        # Only one machine: gloo's own choice works.
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, ""),
        ({}, ""),
    ],
)
def test_gloo_uses_the_interface_to_node_0(given, expected, monkeypatch) -> None:
    monkeypatch.delenv(GLOO, raising=False)
    show = f"print(os.environ.get({GLOO!r}, ''))"
    assert python(PREPARE.format(cuda=False) + show, given).strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize("preloaded", [False, True])
def test_torch_starts_the_threads_that_are_this_process_s_share(preloaded: bool) -> None:
    show = "import torch; print(torch.get_num_threads())"
    given = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "8"}
    if preloaded:
        library = Path(find_spec("torch").origin).parent / "lib" / "libgomp.so.1"
        if not library.exists():
            pytest.skip("this torch brings no OpenMP of its own")
        given[PRELOAD] = str(library)
    # torch starts no more threads than the machine has physical cores, whatever is asked for.
    assert python(PREPARE.format(cuda=False) + show, given) == python(
        show, {"OMP_NUM_THREADS": "2"}
    )


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """16 times the same 32 MiB: by default the kernel gives every page each time."""
    program = """
import resource
from dpo_dist.training.process import keep_freed_memory
if {kept}: keep_freed_memory()
b"x" * 2**25
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for n in range(16):
    b"x" * (2**25 + n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    given_back, kept = (int(python(program.format(kept=kept), {})) for kept in (False, True))
    assert kept < given_back / 10


LOADER = """
import multiprocessing, time
from torch.utils.data import DataLoader
from dpo_dist.training.process import shield_loaders
shield_loaders()
batches = iter(DataLoader(range(9), num_workers=1))
next(batches)
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_loader_s_worker_ends_with_its_process_and_only_with_it() -> None:
    words = [sys.executable, "-c", LOADER]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.5)
        assert alive(worker)
        process.kill()
    deadline = time.monotonic() + 2  # torch's own worker looks for its parent every 5 s
    while alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_container_s_limit_counts_as_its_cores(tmp_path, monkeypatch, limit, expected) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit)
    assert machine.usable_cores() == expected


def test_a_rank_takes_its_gpu_before_anything_else_touches_cuda(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that opens a context passes `_lazy_init`, from Python and from C++."""
    import torch

    import dpo_dist.training.trainer
    from dpo_dist.training.worker import _train

    assert dpo_dist.training.trainer
    calls: list[tuple[str, object]] = []

    def no_device(*_: object) -> None:
        calls.append(("context", None))
        raise RuntimeError("no device")

    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", device)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**36, 2**36))
    monkeypatch.setattr(torch.cuda, "_lazy_init", no_device)
    monkeypatch.setattr("dpo_dist.training.worker.shield_loaders", lambda: None)
    job = training_job(
        tmp_path,
        settings=Train(accelerate_config=ROOT / "accelerate_configs" / "single_gpu.yaml"),
        model=str(tiny_model),
        dtype="bfloat16",
        rows=write_parquet(tmp_path / "rows.parquet", [{"id": "a"}]),
        planned_peak_bytes={"none": 1, "selective": 1, "full": 1},
    )
    with pytest.raises(RuntimeError, match="no device"):
        _train(job)
    assert calls == [("set", 5), ("context", None)]
