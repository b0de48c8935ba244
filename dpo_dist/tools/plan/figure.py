"""A number of a forecast, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["counted", "measured", "given", "stated", "assumed"]


@dataclass(frozen=True)
class Figure:
    """`counted` in the run's own files, `measured` by a finished run, `given` on the command line,
    `stated` by who published a dataset, or `assumed`; `note` says more."""

    value: float
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Given:
    """What the command line says about data that cannot be read here; None: nothing."""

    pairs: int | None = None
    tokens_per_pair: float | None = None
    prompts: int | None = None
    eval_prompts: int | None = None
