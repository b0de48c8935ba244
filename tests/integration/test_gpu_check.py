"""`python -m benchmarks.gpu_check` on a CPU, and what it makes of steps that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check.__main__ import STEPS
from benchmarks.gpu_check.plans import known_gpu
from benchmarks.gpu_check.report import Recorder, Skip, Step, StepResult
from benchmarks.gpu_check.runner import Runner
from benchmarks.gpu_check.scale import adapt_older_torch
from tests.conftest import ROOT

NEEDS_PROCESSES = {8, 9}  # training processes and vLLM, too slow for --quick on a CPU
GIB = 2**30


@pytest.mark.slow
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--quick", "--json", "result.json"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    steps = {step["number"]: step for step in result["steps"]}
    assert list(steps) == [step.number for step in STEPS] == list(range(1, 11))
    verdicts = {number: step["verdict"] for number, step in steps.items()}
    expected = {n: "skipped" if n in NEEDS_PROCESSES else "passed" for n in steps}
    assert verdicts == expected, done.stdout
    assert done.returncode == 0
    for number, step in steps.items():
        if number in NEEDS_PROCESSES:
            assert step["reason"]
            continue
        assert step["figures"] or step["checks"]
        assert all(check["passed"] and check["why"] for check in step["checks"])
    assert {"python", "torch", "transformers"} <= set(result["versions"])
    assert steps[4]["figures"]["LoRA, selective, 2 pairs: tokens/s"] > 0


def reports(record: Recorder, *_: object) -> None:
    record.figure("speed", 2.5)
    record.check("error", 0.1, most=0.2, why="as an example")
    record.note("something")


def is_beyond_its_limit(record: Recorder, *_: object) -> None:
    record.check("good", 1.0, least=1.0, why="as an example")
    record.check("bad", float("nan"), most=0.2, why="as an example")


def raises(record: Recorder, *_: object) -> None:
    record.figure("found before", 1.0)
    raise RuntimeError("the device is lost")


def crashes(record: Recorder, *_: object) -> None:
    record.figure("found before", 1.0)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(record: Recorder, scale: object, folder: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    (folder.parent / "child.pid").write_text(str(child.pid))
    time.sleep(600)


def skips(*_: object) -> None:
    raise Skip("nothing to do")


def lacks_a_package(*_: object) -> None:
    raise ModuleNotFoundError("No module named 'vllm.lora'", name="vllm.lora")


def imports_what_we_lost(*_: object) -> None:
    import dpo_dist.training.moved  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.slow
def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    runner = Runner(tmp_path, quick=True)

    def run(function: object, number: int, budget: float = 120) -> StepResult:
        step = Step(number, "a step", budget, f"{__name__}:{function.__name__}")  # type: ignore[attr-defined]
        return runner.run(step, budget)

    good = run(reports, 1)
    assert (good.verdict, good.figures, good.notes) == ("passed", {"speed": 2.5}, ["something"])
    beyond = run(is_beyond_its_limit, 2)
    assert beyond.verdict == "failed" and beyond.reason == "beyond its limit: bad"
    assert [check.passed for check in beyond.checks] == [True, False]
    error = run(raises, 3)
    assert error.verdict == "failed" and "RuntimeError: the device is lost" in error.reason
    assert error.figures == {"found before": 1.0}
    crash = run(crashes, 4)
    assert crash.verdict == "failed" and "SIGSEGV" in crash.reason and "last words" in crash.reason
    assert crash.figures == {"found before": 1.0}
    hang = run(hangs, 5, budget=6)
    assert hang.verdict == "failed" and hang.reason.startswith("stopped after 6 s")
    child = int((tmp_path / "child.pid").read_text())
    assert _ends(child), "the process that the step started is still running"
    assert (run(skips, 6).verdict, run(skips, 7).reason) == ("skipped", "nothing to do")
    lacking = run(lacks_a_package, 8)
    assert (lacking.verdict, lacking.reason) == ("skipped", "vllm.lora is not installed")
    lost = run(imports_what_we_lost, 9)
    assert lost.verdict == "failed" and "dpo_dist.training.moved" in lost.reason
    assert run(reports, 10).verdict == "passed"


def _ends(process: int) -> bool:
    """Whether a process ends within five seconds; a zombie has ended."""
    for _ in range(50):
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("name", "memory", "expected"),
    [
        ("NVIDIA H200", 140 * GIB, "H200-141G"),
        ("NVIDIA H100 80GB HBM3", 79 * GIB, "H100-80G"),
        ("NVIDIA H100 PCIe", 79 * GIB, "H100-PCIe-80G"),
        ("NVIDIA H100 NVL", 93 * GIB, "H100-NVL-94G"),
        ("NVIDIA A100-SXM4-40GB", 39 * GIB, "A100-40G"),
        ("NVIDIA A100 80GB PCIe", 79 * GIB, "A100-PCIe-80G"),
        ("NVIDIA L40S", 44 * GIB, "L40S-48G"),
        ("Tesla T4", 15 * GIB, None),
        ("CPU", 0, None),
    ],
)
def test_the_peak_is_that_of_this_gpu(name: str, memory: int, expected: str | None) -> None:
    assert known_gpu(name, memory) == expected


def test_a_torch_without_enable_gqa_gets_no_such_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen

    assert adapt_older_torch() is None  # the tested version has it

    def of_torch_2_11(query: int, *, scale: float) -> tuple[int, float]:
        return query, scale

    monkeypatch.setattr(varlen, "varlen_attn", of_torch_2_11)
    note = adapt_older_torch()
    assert note is not None and "enable_gqa" in note
    assert varlen.varlen_attn(3, scale=0.5, enable_gqa=True) == (3, 0.5)  # type: ignore[arg-type,call-arg]
