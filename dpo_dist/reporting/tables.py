"""The comparison table, for the page, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEADERS = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
PREFERRED = "Preferred (judge, pairwise vs SFT)"
ABSENT = "–"
CARD_NOTE = (
    "A canary is a comparison whose right answer is known, asked in both orders. `failed`: fewer "
    "passed than the run file asks for. `accepted`: so they did, and the run file goes on with it."
)
NO_CARD = "The judge was asked about no canaries: whether it can tell good from bad is not shown."


@dataclass(frozen=True)
class Cell:
    """A figure and what stands beside it; `tone` is "better", "worse" or empty."""

    value: str
    detail: str = ""
    tone: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of the comparison at one decoding."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def comparison_table(scores: Mapping[str, Any], decoding: int = 0) -> Table:
    """The table of `scores.json` at one decoding: a row per metric, then the preference.

    The preference's difference is taken from 50 %, what equal models would get.
    """
    arms = scores["arms"]
    headers = ("Metric", *(HEADERS[arm] for arm in arms), "Δ DPO over SFT")
    rows = []
    for row in scores["metrics"]:
        if row["decoding"] == decoding:
            points = row["unit"] == "points"
            cells = [(_points if points else share_cell)(row["arms"][arm]) for arm in arms]
            rows.append((row["label"], (*cells, _difference(row["delta"], points=points))))
    preferred = scores["preferred"]
    if preferred is not None and preferred["decoding"] == decoding:
        cells = [share_cell(preferred) if arm == "dpo" else Cell(ABSENT) for arm in arms]
        rows.append((PREFERRED, (*cells, _difference(_minus_half(preferred)))))
    return Table(headers, tuple(rows))


def audit_table(shares: Sequence[Mapping[str, Any]]) -> Table:
    """What the labels say about themselves, where they say anything; toned where a share is out of
    its range."""
    rows = []
    for share in shares:
        if not share["n"]:
            continue
        cell = share_cell(share)
        tone = "worse" if share["remedy"] else ""
        rows.append((share["label"], (Cell(cell.value, cell.detail, tone),)))
    return Table(("Labels", "Share"), tuple(rows))


def canary_table(card: Sequence[Mapping[str, Any]]) -> Table:
    """How the judge fared with comparisons whose right answer is known: the judge's card."""
    tones = {"passed": "better", "failed": "worse", "accepted": "worse"}
    rows = []
    for row in card:
        detail = _interval(row)
        if row["not_compared"]:
            detail += f", {row['not_compared']} without a comparison"
        passed = Cell(f"{row['passed']} of {row['n']}", detail)
        rows.append((row["label"], (passed, Cell(row["status"], "", tones[row["status"]]))))
    return Table(("Judge", "Canaries passed", "Result"), tuple(rows))


def decoding_name(decoding: Mapping[str, Any]) -> str:
    """How answers were drawn: `greedy` or `temperature 0.7, top-p 0.9`; what is off is left out."""
    if decoding["temperature"] == 0:
        return "greedy"
    parts = [f"temperature {decoding['temperature']:g}"]
    if decoding["top_p"] != 1:
        parts.append(f"top-p {decoding['top_p']:g}")
    if decoding.get("top_k"):
        parts.append(f"top-k {decoding['top_k']}")
    if decoding.get("min_p"):
        parts.append(f"min-p {decoding['min_p']:g}")
    return ", ".join(parts)


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown."""
    lines = [_markdown_row(table.headers), _markdown_row(["---"] * len(table.headers))]
    lines += [_markdown_row([label, *map(str, cells)]) for label, cells in table.rows]
    return "\n".join(lines) + "\n"


def to_text(table: Table) -> str:
    """Columns aligned for a terminal."""
    lines = [list(table.headers)] + [[label, *map(str, cells)] for label, cells in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.headers))]
    text = [
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(text) + "\n"


def _markdown_row(parts: Sequence[str]) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"


def share_cell(estimate: Mapping[str, Any]) -> Cell:
    if estimate["mean"] is None:
        return Cell(ABSENT, "n=0")
    return Cell(f"{100 * estimate['mean']:.1f} %", f"{_interval(estimate)} n={estimate['n']}")


def _points(estimate: Mapping[str, Any]) -> Cell:
    if estimate["mean"] is None:
        return Cell(ABSENT, "n=0")
    interval = "[n/a]"
    if estimate["low"] is not None:
        interval = f"[{estimate['low']:.1f}–{estimate['high']:.1f}]"
    return Cell(f"{estimate['mean']:.2f}", f"{interval} n={estimate['n']}")


def _interval(estimate: Mapping[str, Any]) -> str:
    """Of a share, in percent."""
    if estimate["low"] is None:
        return "[n/a]"
    return f"[{100 * estimate['low']:.0f}–{100 * estimate['high']:.0f}]"


def difference_cell(row: Mapping[str, Any]) -> Cell:
    """A difference that is a row of its own, with its "unit"."""
    return _difference(row, points=row["unit"] == "points")


def _difference(estimate: Mapping[str, Any] | None, *, points: bool = False) -> Cell:
    """In percentage points, or in points; toned only where the interval excludes zero."""
    if estimate is None or estimate["mean"] is None:
        return Cell(ABSENT)
    mean = estimate["mean"]
    value = f"{mean:+.2f}" if points else f"{100 * mean:+.1f} pp"
    if estimate["low"] is None:
        return Cell(value, f"[n/a] n={estimate['n']}")
    low, high = estimate["low"], estimate["high"]
    tone = "better" if low > 0 else "worse" if high < 0 else ""
    interval = f"[{low:+.2f}, {high:+.2f}]" if points else f"[{100 * low:+.0f}, {100 * high:+.0f}]"
    return Cell(value, f"{interval} n={estimate['n']}", tone)


def _minus_half(estimate: Mapping[str, Any]) -> dict[str, Any]:
    shifted = {
        key: None if estimate[key] is None else estimate[key] - 0.5
        for key in ("mean", "low", "high")
    }
    return {"n": estimate["n"], **shifted}
