"""What a check has found, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One check's result: what was found, and where it is not well what to do about it."""

    state: State
    text: str
    advice: str = ""

    def __str__(self) -> str:
        """For a cell of a table: what has failed is told in full below it."""
        if self.state == "failed":
            return "FAILED"
        return f"{self.text} (!)" if self.state == "warning" else self.text


def table(heads: Sequence[str], rows: Mapping[str, Sequence[Finding]]) -> str:
    """A line for every check, with what it has found on each machine."""
    cells = [["", *heads], *([name, *map(str, found)] for name, found in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
