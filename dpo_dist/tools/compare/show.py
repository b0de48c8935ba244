"""A comparison of runs as text for a terminal and as an HTML page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from dpo_dist.config import Sampling
from dpo_dist.evaluation.scores import Scores
from dpo_dist.judging.spend import Spend
from dpo_dist.reporting.figures import TrainingFigures
from dpo_dist.reporting.page import render_template
from dpo_dist.reporting.tables import (
    ABSENT,
    Cell,
    Table,
    comparison_table,
    decoding_name,
    difference_cell,
    kl_cell,
    margin_cell,
    number_cell,
    share_cell,
    steps_cell,
    to_text,
)
from dpo_dist.reporting.text import visible
from dpo_dist.system.console import counted
from dpo_dist.tools.compare.runs import PairedRuns, RunComparison

WIDTH = 100  # columns of the terminal
NARROWEST = 26  # minimum width of a cut column
INDENT = "\u00a0\u00a0"  # HTML would drop ordinary spaces
NOTE = (
    "Differences are paired by prompt, with 95 % intervals over prompts. With several rows, "
    "expect an occasional one whose interval excludes zero by chance. If runs differ in more than "
    "one setting, the figures do not show which setting made the difference."
)


@dataclass(frozen=True)
class TitledTable:
    """A heading, a table (None: nothing to show), and a note on it."""

    title: str
    table: Table | None
    note: str = ""


def to_terminal(figures: RunComparison) -> str:
    """The comparison as text. Columns that do not fit the terminal's width are shown below."""
    parts = ["\n".join(f"{name}  {path}" for name, path in figures.runs.items())]
    for section in sections(figures):
        tables = _fitting(section.table) if section.table is not None else []
        shown = "\n".join(to_text(table) for table in tables)
        parts.append("\n".join(filter(None, (section.title, "", shown + section.note))).rstrip())
    parts.append(textwrap.fill(NOTE, WIDTH))
    return visible("\n\n".join(parts)) + "\n"


def to_page(figures: RunComparison) -> str:
    """The comparison as an HTML page in the report's style."""
    return render_template(
        "compare.html.j2",
        "dpo_dist.tools.compare",
        runs=figures.runs,
        sections=sections(figures),
        note=NOTE,
    )


def sections(figures: RunComparison) -> list[TitledTable]:
    """All sections in order."""
    return [
        _differing("Settings that differ", figures, figures.settings),
        *_evaluations(figures),
        *(_paired(figures, pair) for pair in figures.paired),
        TitledTable("Final training figures", _training(figures)),
        TitledTable("Judges", _judges(figures)),
        _differing("Versions that differ", figures, figures.versions),
    ]


def _differing(
    title: str, figures: RunComparison, values: Mapping[str, tuple[JsonValue, ...]]
) -> TitledTable:
    rows = [(key, tuple(Cell(_shown(v)) for v in row)) for key, row in values.items()]
    if not rows:
        return TitledTable(title, None, "none")
    return TitledTable(title, Table(("Setting", *figures.runs), tuple(rows)))


def _shown(value: JsonValue) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _evaluations(figures: RunComparison) -> list[TitledTable]:
    """A table per decoding, with a row per metric and arm."""
    evaluations = figures.evaluations
    tables = []
    for decoding in dict.fromkeys(d for e in evaluations if e is not None for d in e.decodings):
        cells = [_cells(evaluation, decoding) for evaluation in evaluations]
        rows = []
        for label in dict.fromkeys(label for own in cells for label, _ in own):
            rows.append((label, tuple(Cell("") for _ in cells)))
            for arm in dict.fromkeys(arm for own in cells for name, arm in own if name == label):
                row = tuple(own.get((label, arm), Cell(ABSENT)) for own in cells)
                if any(cell.value != ABSENT for cell in row):
                    rows.append((f"{INDENT}{arm}", row))
        name = f"Held-out prompts, {decoding_name(decoding)}, up to {decoding.max_tokens} tokens"
        tables.append(TitledTable(name, Table(("Metric", *figures.runs), tuple(rows))))
    return tables


def _cells(evaluation: Scores | None, decoding: Sampling) -> dict[tuple[str, str], Cell]:
    """The cells of a run's table by metric and column; empty if it lacks the decoding."""
    if evaluation is None or decoding not in evaluation.decodings:
        return {}
    table = comparison_table(evaluation, evaluation.decodings.index(decoding))
    return {
        (label, header): cell
        for label, cells in table.rows
        for header, cell in zip(table.headers[1:], cells, strict=True)
    }


def _paired(figures: RunComparison, pair: PairedRuns) -> TitledTable:
    a, b = pair.a, pair.b
    title = f"SFT+DPO of {a} minus SFT+DPO of {b}, paired by prompt"
    if pair.why_not:
        return TitledTable(title, None, f"cannot be paired: {pair.why_not}")
    first = figures.evaluations[0]
    assert first is not None, "only evaluated runs are paired"
    rows = [
        (
            f"{row.label}, {decoding_name(first.decodings[row.decoding])}",
            (difference_cell(row, row.unit, row.better),),
        )
        for row in pair.rows
    ]
    left_out = ", ".join(pair.left_out)
    note = f"left out, measured differently: {left_out}" if left_out else ""
    return TitledTable(title, Table(("Metric", f"{a} − {b}"), tuple(rows)) if rows else None, note)


def _training(figures: RunComparison) -> Table:
    rows = [
        (label, tuple(Cell(ABSENT) if t is None else show(t) for t in figures.training))
        for label, show in _TRAINING.items()
    ]
    return Table(("Figure", *figures.runs), tuple(rows))


_TRAINING: dict[str, Callable[[TrainingFigures], Cell]] = {
    "Pairs": lambda t: Cell(str(t.pairs.train), f"+ {t.pairs.validation} for validation"),
    "Steps": steps_cell,
    "Loss": lambda t: number_cell(t.loss, ".4f"),
    "Validation loss": lambda t: number_cell(t.validation_loss, ".4f"),
    "Validation accuracy": lambda t: share_cell(t.accuracy),
    "Validation margin": margin_cell,
    "KL (nats/token, ± 95 %)": kl_cell,
    "KL from": lambda t: Cell(t.reference if t.kl else ABSENT),
    "Alarms": lambda t: Cell(", ".join(t.alarms) or "none"),
    "Seconds": lambda t: Cell(f"{t.wall_seconds:.0f}"),
}


def _judges(figures: RunComparison) -> Table | None:
    """A row per judge, because names of judges are long."""
    rows = [
        (f"{run}, {task}", (Cell(cost.judge), Cell(_cost(cost.spend))))
        for run, judges in zip(figures.runs, figures.judges, strict=True)
        for task, cost in judges.items()
    ]
    return Table(("Task", "Judge", "Cost"), tuple(rows)) if rows else None


def _cost(spend: Spend | None) -> str:
    if spend is None:
        return "none"
    usd = "unknown" if spend.usd is None else f"${spend.usd:.2f}"
    return f"{usd}, {counted(spend.usage.get('attempts', 0), 'request')}"


def _fitting(table: Table) -> list[Table]:
    """The table, split into tables that fit the width."""
    left = max(len(label) for label in (table.headers[0], *(label for label, _ in table.rows)))
    if left + sum(_widths(table)) > WIDTH:
        widest = max(NARROWEST, (WIDTH - left) // (len(table.headers) - 1) - 2)
        rows = ((label, tuple(_clipped(c, widest) for c in cells)) for label, cells in table.rows)
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
    """The widths of the columns after the first, including the space before each."""
    return [
        2 + max(len(header), *(len(str(cells[column])) for _, cells in table.rows))
        for column, header in enumerate(table.headers[1:])
    ]


def _clipped(cell: Cell, width: int) -> Cell:
    """The cell, cut to its end if it is too long: paths differ mostly at the end."""
    if cell.detail or len(cell.value) <= width:
        return cell
    return Cell(f"…{cell.value[1 - width :]}", "", cell.tone)
