"""Runs side by side: as text for a terminal, as a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpo_dist.reporting.cells import (
    kl_cell,
    margin_cell,
    number_cell,
    optional_share,
    steps_cell,
)
from dpo_dist.reporting.page import render_template
from dpo_dist.reporting.tables import (
    ABSENT,
    Cell,
    Table,
    comparison_table,
    decoding_name,
    difference_cell,
    to_text,
)
from dpo_dist.reporting.text import visible
from dpo_dist.system.console import counted

WIDTH = 100  # columns of the terminal
NARROWEST = 26  # what a column of settings is never cut below
INDENT = "\u00a0\u00a0"  # a page would drop plain spaces
NOTE = (
    "Differences are paired by prompt, with 95 % intervals over prompts. With several rows, "
    "expect an occasional one whose interval excludes zero by chance. If runs differ in more than "
    "one setting, the figures do not show which setting made the difference."
)


@dataclass(frozen=True)
class TitledTable:
    """A heading, a table below it (None: nothing to show), and what has to be said about it."""

    title: str
    table: Table | None
    note: str = ""


def to_terminal(figures: Mapping[str, Any]) -> str:
    """The comparison in columns that fit a terminal; runs that do not fit go below."""
    named = "\n".join(f"{name}  {path}" for name, path in figures["runs"].items())
    parts = [named]
    for section in sections(figures):
        tables = _fitting(section.table) if section.table is not None else []
        shown = "\n".join(to_text(table) for table in tables)
        parts.append("\n".join(filter(None, (section.title, "", shown + section.note))).rstrip())
    parts.append(textwrap.fill(NOTE, WIDTH))
    return visible("\n\n".join(parts)) + "\n"


def to_page(figures: Mapping[str, Any]) -> str:
    """The comparison as a page like the report's."""
    return render_template(
        "compare.html.j2",
        "dpo_dist.tools.compare",
        runs=figures["runs"],
        sections=sections(figures),
        note=NOTE,
    )


def sections(figures: Mapping[str, Any]) -> list[TitledTable]:
    """Everything that is shown, in order."""
    return [
        TitledTable(
            "Settings that differ", _values(figures, "settings"), _same(figures, "settings")
        ),
        *_evaluations(figures),
        *(_paired(figures, pair) for pair in figures["paired"]),
        TitledTable("Training, at the end", _training(figures)),
        TitledTable("Judges", _judges(figures)),
        TitledTable(
            "Versions that differ", _values(figures, "versions"), _same(figures, "versions")
        ),
    ]


def _values(figures: Mapping[str, Any], what: str) -> Table | None:
    rows = [(key, tuple(Cell(_shown(v)) for v in row)) for key, row in figures[what].items()]
    return Table(("Setting", *figures["runs"]), tuple(rows)) if rows else None


def _same(figures: Mapping[str, Any], what: str) -> str:
    return "" if figures[what] else "none"


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _evaluations(figures: Mapping[str, Any]) -> list[TitledTable]:
    """A table for every decoding: what the runs' own tables say, the same metric in one row."""
    evaluations = figures["evaluations"]
    decodings: list[dict[str, Any]] = []
    for evaluation in evaluations:
        if evaluation is not None:
            decodings += [d for d in evaluation["decodings"] if d not in decodings]
    found = []
    for decoding in decodings:
        cells = [_cells(evaluation, decoding) for evaluation in evaluations]
        rows = []
        for label in dict.fromkeys(label for own in cells for label, _ in own):
            rows.append((label, tuple(Cell("") for _ in cells)))
            for arm in dict.fromkeys(arm for own in cells for name, arm in own if name == label):
                row = tuple(own.get((label, arm), Cell(ABSENT)) for own in cells)
                if any(cell.value != ABSENT for cell in row):
                    rows.append((f"{INDENT}{arm}", row))
        name = f"Held-out prompts, {decoding_name(decoding)}, up to {decoding['max_tokens']} tokens"
        found.append(TitledTable(name, Table(("Metric", *figures["runs"]), tuple(rows))))
    return found


def _cells(
    evaluation: Mapping[str, Any] | None, decoding: Mapping[str, Any]
) -> dict[tuple[str, str], Cell]:
    """A run's table at a decoding, by metric and column; empty where it has no such decoding."""
    if evaluation is None or decoding not in evaluation["decodings"]:
        return {}
    table = comparison_table(evaluation, evaluation["decodings"].index(decoding))
    return {
        (label, header): cell
        for label, cells in table.rows
        for header, cell in zip(table.headers[1:], cells, strict=True)
    }


def _paired(figures: Mapping[str, Any], pair: Mapping[str, Any]) -> TitledTable:
    a, b = pair["a"], pair["b"]
    title = f"SFT+DPO of {a} minus SFT+DPO of {b}, paired by prompt"
    if pair["why_not"]:
        return TitledTable(title, None, f"cannot be paired: {pair['why_not']}")
    decodings = figures["evaluations"][0]["decodings"]
    rows = [
        (f"{row['label']}, {decoding_name(decodings[row['decoding']])}", (difference_cell(row),))
        for row in pair["rows"]
    ]
    left_out = ", ".join(pair["left_out"])
    note = f"left out, measured differently: {left_out}" if left_out else ""
    return TitledTable(title, Table(("Metric", f"{a} − {b}"), tuple(rows)) if rows else None, note)


def _training(figures: Mapping[str, Any]) -> Table:
    rows = [
        (label, tuple(Cell(ABSENT) if t is None else show(t) for t in figures["training"]))
        for label, show in _TRAINING.items()
    ]
    return Table(("Figure", *figures["runs"]), tuple(rows))


_TRAINING: dict[str, Callable[[Mapping[str, Any]], Cell]] = {
    "Pairs": lambda t: Cell(str(t["pairs"]["train"]), f"+ {t['pairs']['validation']} to validate"),
    "Steps": steps_cell,
    "Loss": lambda t: number_cell(t["loss"], ".4f"),
    "Validation loss": lambda t: number_cell(t["validation_loss"], ".4f"),
    "Validation accuracy": lambda t: optional_share(t["accuracy"]),
    "Validation margin": margin_cell,
    "KL (nats/token, ± 95 %)": kl_cell,
    "KL from": lambda t: Cell(t["reference"] if t["kl"] else ABSENT),
    "Alarms": lambda t: Cell(", ".join(t["alarms"]) or "none"),
    "Seconds": lambda t: Cell(f"{t['wall_seconds']:.0f}"),
}


def _judges(figures: Mapping[str, Any]) -> Table | None:
    """A row each, since what names a judge is long."""
    rows = [
        (f"{run}, {name}", (Cell(found["judge"]), Cell(_cost(found["spend"]))))
        for run, judges in zip(figures["runs"], figures["judges"], strict=True)
        for name, found in judges.items()
    ]
    return Table(("Task", "Judge", "Cost"), tuple(rows)) if rows else None


def _cost(spend: Mapping[str, Any] | None) -> str:
    if spend is None:
        return "none"
    usd = "unknown" if spend["usd"] is None else f"${spend['usd']:.2f}"
    return f"{usd}, {counted(spend['usage'].get('attempts', 0), 'request')}"


def _fitting(table: Table) -> list[Table]:
    """The table cut into as many as fit the width, each with whole columns."""
    left = max(len(label) for label in (table.headers[0], *(label for label, _ in table.rows)))
    if left + sum(_widths(table)) > WIDTH:
        room = max(NARROWEST, (WIDTH - left) // (len(table.headers) - 1) - 2)
        rows = ((label, tuple(_clipped(c, room) for c in cells)) for label, cells in table.rows)
        table = Table(table.headers, tuple(rows))
    blocks: list[list[int]] = []
    used = WIDTH
    for column, width in enumerate(_widths(table)):
        if used + width > WIDTH:
            blocks.append([])
            used = left
        blocks[-1].append(column)
        used += width
    return [
        Table(
            (table.headers[0], *(table.headers[column + 1] for column in block)),
            tuple((label, tuple(cells[column] for column in block)) for label, cells in table.rows),
        )
        for block in blocks
    ]


def _widths(table: Table) -> list[int]:
    """Of the columns behind the first, with the space before them."""
    return [
        2 + max(len(header), *(len(str(cells[column])) for _, cells in table.rows))
        for column, header in enumerate(table.headers[1:])
    ]


def _clipped(cell: Cell, room: int) -> Cell:
    """Long values keep their end, which is what tells paths from each other."""
    if cell.detail or len(cell.value) <= room:
        return cell
    return Cell(f"…{cell.value[1 - room :]}", "", cell.tone)
