"""Trains a DPO-aligned model from an SFT model and prompts, and measures what changed.

The Python API (docs/python.md): `load_run` reads a run file, `run_phases` runs it, `read_pairs` and
`read_report` read what it wrote, and `prefer` asks a judge. What goes wrong is a `DpoDistError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpo_dist.api import LoadedRun, load_run, prefer, read_pairs, read_report, run_phases
    from dpo_dist.errors import DpoDistError

__version__ = "0.1.0"
__all__ = [
    "DpoDistError",
    "LoadedRun",
    "__version__",
    "load_run",
    "prefer",
    "read_pairs",
    "read_report",
    "run_phases",
]


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that `import dpo_dist` is instant."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "dpo_dist.errors" if name == "DpoDistError" else "dpo_dist.api"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return __all__
