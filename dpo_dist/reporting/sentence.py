"""A sentence of the reflection and the figures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]  # the content of report.json


@dataclass(frozen=True)
class Sentence:
    """What the figures say. `figures` are the places in report.json that it rests on, dotted;
    a `warning` is something to look at."""

    topic: str
    text: str
    figures: tuple[str, ...]
    warning: bool = False

    def __post_init__(self) -> None:
        assert self.figures, "no sentence without its figure"


def look_up(report: Report, name: str) -> Any:
    """The figure of a sentence's dotted name. Raises `KeyError` or `IndexError` where the report
    has none."""
    value: Any = report
    for part in name.split("."):
        value = value[int(part)] if isinstance(value, Sequence) else value[part]
    return value
