"""The result of a check, and the table of the results of all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """The result of one check, with advice if it is not ok."""

    state: State
    text: str
    advice: str = ""

    def __str__(self) -> str:
        """The text of a table cell. The details of a failure are printed below the table."""
        if self.state == "failed":
            return "FAILED"
        return f"{self.text} (!)" if self.state == "warning" else self.text


def table(nodes: Sequence[str], rows: Mapping[str, Sequence[Finding]]) -> str:
    """A line per check, a column per node."""
    cells = [["", *nodes], *([name, *map(str, found)] for name, found in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
