"""Times the phases of the demo, starting with an empty directory.

    python -m benchmarks.demo [--quick] [--json FILE]

Seconds are the wall-clock time of a phase, including the start of its processes. The rates of
`sample` exclude the engine's start. The rate of `train` is preference pairs per second of the
optimizer steps, including validation.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import option_parser, publish

RUN_FILE = Path("recipes/incident_triage/run.yaml")
QUICK = ("sft.data.limit=16", "sample.prompts.limit=16", "evaluate.prompts.limit=8")


def main() -> None:
    options = option_parser(__doc__).parse_args()
    figures = {"help_seconds": help_seconds()}
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run.output_dir={folder}", *(QUICK if options.quick else ())]
        command = [sys.executable, "-m", "dpo_dist", "run", str(RUN_FILE)]
        for override in overrides:
            command += ["--set", override]
        started = time.monotonic()
        subprocess.run(command, check=True)
        figures["total_seconds"] = time.monotonic() - started
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures["second_run_seconds"] = time.monotonic() - started
        figures |= collect(Path(folder) / "incident-triage")
    publish(figures, options.json)


def help_seconds() -> float:
    """The median of nine starts of `dpo-dist --help`."""
    times = []
    for _ in range(9):
        started = time.monotonic()
        command = [sys.executable, "-m", "dpo_dist", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def collect(root: Path) -> dict[str, float]:
    """The figures in the manifests of a finished run."""
    manifests = {path.parent.name: _read(path) for path in sorted(root.glob("*/manifest.json"))}
    figures = {
        f"{phase}_seconds": manifest["wall_seconds"] for phase, manifest in manifests.items()
    }
    sample, train = manifests["sample"], manifests["train"]
    figures["sample_engine_start_seconds"] = sample["engine_start_seconds"]
    figures["sample_candidates_per_second"] = sample["candidates_per_second"]
    figures["sample_tokens_per_second"] = sample["tokens_per_second"]
    figures["train_pairs"] = train["pairs"]["train"]
    seconds = _last_line(root / "train" / "metrics.jsonl")["train_runtime"]
    figures["train_pairs_per_second"] = train["pairs"]["train"] / seconds
    figures["train_peak_rss_gib"] = train["peak_rss_bytes"] / 2**30
    figures["evaluate_tokens_per_second"] = manifests["evaluate"]["tokens_per_second"]
    return figures


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _last_line(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return value


if __name__ == "__main__":
    main()
