"""Runs a step in a process of its own: it may crash, hang, or leave CUDA unusable."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
import traceback
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.gpu_check.report import Recorder, Skip, Step, StepResult, read_result
from dpo_dist.system.processes import die_with_parent

# A step that needs one of these is skipped where it is not installed.
OPTIONAL = {
    "accelerate", "datasets", "deepspeed", "peft", "pyarrow", "pydantic", "pytest", "scipy",
    "tokenizers", "triton", "trl", "vllm",
}  # fmt: skip
LAST_LINES = 16
# torch's allocator is set as for a training whose rows differ in length.
ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Runner:
    """Starts the processes of the steps, one after the other."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        # Where there is no GPU, one process imports torch and is forked for every step. CUDA does
        # not survive a fork, and an import may have initialised it, so a GPU's steps start afresh.
        self._context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if not may_have_gpu():
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(
                ["torch", "transformers.models.qwen2.modeling_qwen2", "benchmarks.gpu_check.scale"]
            )

    def run(self, step: Step, budget: float) -> StepResult:
        """The result of a step that may take `budget` seconds."""
        path, log = (self._folder / f"step-{step.number}.{kind}" for kind in ("jsonl", "log"))
        path.touch()
        work = self._folder / f"step-{step.number}"
        work.mkdir()
        started = time.monotonic()
        # Not a daemon, which could not start the workers of a data loader.
        process = self._context.Process(
            target=_child, args=(step, path, log, work, self._quick, started + budget)
        )
        process.start()
        try:
            process.join(budget)
            timed_out = process.is_alive()
        finally:
            _end(process)
        seconds = time.monotonic() - started
        result = StepResult(step.number, step.name, "passed", seconds, budget)
        ended = read_result(path, result)
        if not ended:
            result.verdict = "failed"
            how = f"stopped after {budget:.0f} s" if timed_out else _exit(process.exitcode)
            result.reason = f"{how}. Its last output: {_last_lines(log)}"
        return result


def may_have_gpu() -> bool:
    """Whether this machine may have an NVIDIA GPU; does not initialise CUDA."""
    return any(
        map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0"))
    )


def _child(step: Step, path: Path, log: Path, work: Path, quick: bool, deadline: float) -> None:
    os.setsid()  # so that a time-out also ends what this process starts
    die_with_parent()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    os.environ |= ENVIRONMENT | os.environ
    record = Recorder(path, deadline)
    try:
        from benchmarks.gpu_check.scale import Scale

        pkgutil.resolve_name(step.run)(record, Scale.of_this_machine(quick), work)
        record.end()
    except Skip as reason:
        record.end("skipped", str(reason))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            record.end("failed", _where(error))
        else:
            record.end("skipped", f"{error.name} is not installed")
    except BaseException as error:
        record.end("failed", _where(error))
    sys.stdout.flush()


def _where(error: BaseException) -> str:
    """The end of the traceback, in one line."""
    traceback.print_exc()
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]} ({places})"


def _end(process: BaseProcess) -> None:
    """End the process and everything that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code} without a result"


def _last_lines(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # faulthandler names every C extension after the stack.
    kept = [line for line in lines if not line.startswith("Extension modules")]
    return " | ".join(kept[-LAST_LINES:]) or "none"
