"""Printing a benchmark's figures and writing them with the machine and versions they hold for."""

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
    parser.add_argument("--quick", action="store_true", help="a small part, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


def publish(figures: Mapping[str, float], target: Path | None) -> None:
    """Print a table; write `{"figures", "machine", "versions"}` when a file is asked for."""
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
