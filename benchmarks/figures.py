"""Prints the figures of a benchmark, and writes them with the machine and the package versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from dpo_dist.phases.pipeline import package_versions

MODEL = Path(".cache/models/SmolLM2-135M-Instruct")


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: `--quick` and `--json FILE`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run a small part, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, as JSON")
    return parser


def publish(figures: Mapping[str, float], target: Path | None) -> None:
    """Print a table, and write `{"figures", "machine", "versions"}` to `target` if it is given."""
    width = max(len(name) for name in figures)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>12,.3f}")
    if target is not None:
        content = {"figures": dict(figures), "machine": _machine(), "versions": package_versions()}
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _machine() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1)}
