"""Step 1: what this machine is, and the tests that need a GPU."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from benchmarks.gpu_check.report import Recorder
from benchmarks.gpu_check.scale import Scale, adapt_older_torch, installed

ROOT = Path(__file__).parents[2]


def versions(record: Recorder, scale: Scale, _: Path) -> None:
    """Step 1."""
    record.note(f"{scale.device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if scale.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        record.figure("GPUs", torch.cuda.device_count())
        record.figure("memory GiB", properties.total_memory / 2**30)
        record.figure("multiprocessors", properties.multi_processor_count)
        record.check(
            "compute capability",
            properties.major + properties.minor / 10,
            least=8.0,
            why="bfloat16 and the flash kernel need Ampere or newer",
        )
        if note := adapt_older_torch():
            record.note(note)
    _tests(record, scale)


def _tests(record: Recorder, scale: Scale) -> None:
    if not installed("pytest") or not (ROOT / "tests" / "gpu").is_dir():
        record.note("pytest is not installed, or tests/gpu is not here: no tests")
        return
    import pytest

    # The project's options need plugins, and warnings of other versions are no errors here.
    options = ["-q", "-o", "addopts=", "-W", "default", "-p", "no:cacheprovider", "--tb=line"]
    output = StringIO()
    with redirect_stdout(output):
        status = pytest.main([str(ROOT / "tests" / "gpu"), f"--rootdir={ROOT}", *options])
    print(output.getvalue())
    counts = {
        word: int(n)
        for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", output.getvalue())
    }
    for word in ("passed", "skipped"):
        record.figure(f"tests/gpu: {word}", counts.get(word, 0))
    record.check(
        "tests/gpu: failed",
        counts.get("failed", 0) + counts.get("error", 0) + (status not in (0, 1)),
        most=0,
        why="each compares the GPU's result with its definition",
    )
    for line in re.findall(r"^(?:FAILED|ERROR|E ).*", output.getvalue(), re.MULTILINE)[:8]:
        record.note(line[:300])
    if scale.on_gpu:
        record.check(
            "tests/gpu: passed on the GPU",
            counts.get("passed", 0),
            least=1,
            why="all of them skipped would prove nothing",
        )
