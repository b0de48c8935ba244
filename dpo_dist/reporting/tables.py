"""The comparison table, for the page, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_dist.intervals import LEVEL

HEADERS = {"base": "Base", "sft": "SFT", "dpo": "SFT+DPO"}
PREFERRED = "Preferred (judge, pairwise vs SFT)"
EQUAL_LENGTH = "Preferred, at equal lengths"
ABSENT = "–"
REFLECTION = "What DPO did to the model, and what it did not"
CARD_NOTE = (
    "A canary is a comparison whose right answer is known, asked in both orders. `failed`: fewer "
    "passed than the run file requires. `accepted`: likewise, but the run file accepts it."
)
NO_CARD = "The judge was not tested with canaries: whether it can tell good from bad is unknown."


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
            cells = [_metric_cell(row, arm) for arm in arms]
            delta = _difference(row["delta"], row["unit"], row["better"])
            rows.append((row["label"], (*cells, delta)))
    preferred = scores["preferred"]
    if preferred is not None and preferred["decoding"] == decoding:
        controlled = preferred["length_controlled"]
        for label, rate in ((PREFERRED, preferred), (EQUAL_LENGTH, controlled)):
            if rate is not None:
                cells = [share_cell(rate) if arm == "dpo" else Cell(ABSENT) for arm in arms]
                delta = _difference(_minus_half(rate), "share", "higher")
                rows.append((label, (*cells, delta)))
    return Table(headers, tuple(rows))


def score_badge(row: Mapping[str, Any], value: float) -> Cell:
    """A metric's value for one answer; toned at either end of a share."""
    if row["unit"] != "share":
        unit = "" if row["unit"] == "points" else f" {row['unit']}"
        return Cell(f"{value:g}{unit}", row["label"])
    shown = {0.0: "✗", 1.0: "✓"}.get(value, f"{value:.2f}")
    tone = ""
    if row["better"] and value in (0.0, 1.0):
        tone = "better" if (value == 1.0) == (row["better"] == "higher") else "worse"
    return Cell(shown, row["label"], tone)


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


def pairwise_table(scores: Mapping[str, Any]) -> Table:
    """What the verdicts on every compared pair of arms were, and what they can show."""
    rows = []
    for pair in scores["pairwise"]:
        bounds = Cell(_reasons(pair["missing"]), _bounds(pair)) if pair["missing"] else Cell("none")
        smallest = pair["detectable"]
        cells = (
            share_cell(pair),
            *(Cell(str(pair[name])) for name in ("wins", "losses", "ties", "inconsistent")),
            bounds,
            Cell(ABSENT if smallest is None else f"±{100 * smallest:.0f} pp"),
            Cell(_probability(pair["p_holm"]) or ABSENT),
        )
        rows.append((f"{HEADERS[pair['a']]} over {HEADERS[pair['b']]}", cells))
    headers = ("Pair", "Win rate", "Won", "Lost", "Tied", "Inconsistent", "Missing")
    return Table((*headers, "Detectable", "Sign test"), tuple(rows))


def ranking_table(ranking: Mapping[str, Any] | None) -> Table:
    """Every arm's strength, the strongest first; no rows where there are none."""
    rows = []
    for arm in ranking["strengths"] if ranking else ():
        interval = "[n/a]"
        if arm["low"] is not None:
            interval = f"[{arm['low']:+.2f}, {arm['high']:+.2f}]"
        cell = Cell(f"{arm['strength']:+z.2f}", interval)
        rows.append((HEADERS.get(arm["arm"], f"SFT+DPO, {arm['arm']}"), (cell,)))
    return Table(("Arm", "Strength (log-odds)"), tuple(rows))


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts.items())


def _bounds(pair: Mapping[str, Any]) -> str:
    """The win rate if all that is missing had been lost, or won."""
    return f"{100 * pair['worst']:.0f}–{100 * pair['best']:.0f} % if all were losses or wins"


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


def moment(alarm: Mapping[str, Any]) -> str:
    """When an alarm was given: `Step 10`, or `Round 2, step 10`."""
    step = f"step {alarm['step']}"
    return f"Round {alarm['round']}, {step}" if "round" in alarm else step.capitalize()


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
        return Cell("n/a", f"n={estimate['n']}")
    return Cell(f"{100 * estimate['mean']:.1f} %", f"{_interval(estimate)} n={estimate['n']}")


def _metric_cell(row: Mapping[str, Any], arm: str) -> Cell:
    """An arm's figure; what the metric could not score is counted behind n."""
    estimate = row["arms"][arm]
    reasons = _reasons(row["missing"].get(arm, {}))
    cell = share_cell(estimate) if row["unit"] == "share" else _number(estimate, row["unit"])
    return Cell(cell.value, f"{cell.detail} ({reasons})") if reasons else cell


def _number(estimate: Mapping[str, Any], unit: str) -> Cell:
    if estimate["mean"] is None:
        return Cell("n/a", f"n={estimate['n']}")
    interval = "[n/a]"
    if estimate["low"] is not None:
        digits = 2 if unit == "kappa" else 1
        interval = f"[{estimate['low']:.{digits}f}–{estimate['high']:.{digits}f}]"
    return Cell(f"{estimate['mean']:.2f}", f"{interval} n={estimate['n']}")


def _interval(estimate: Mapping[str, Any]) -> str:
    """Of a share, in percent."""
    if estimate["low"] is None:
        return "[n/a]"
    return f"[{100 * estimate['low']:.0f}–{100 * estimate['high']:.0f}]"


def difference_cell(row: Mapping[str, Any]) -> Cell:
    """A difference that is a row of its own, with its "unit" and what of it is "better"."""
    return _difference(row, row["unit"], row["better"])


def _difference(estimate: Mapping[str, Any] | None, unit: str, better: str | None) -> Cell:
    """In percentage points of shares, or in the unit; toned only where one way is better and both
    the interval and the adjusted test, where there is one, leave out zero."""
    if estimate is None or estimate["mean"] is None:
        return Cell(ABSENT)
    share = unit == "share"
    mean = estimate["mean"]
    value = f"{100 * mean:+z.1f} pp" if share else f"{mean:+z.2f}"
    if estimate["low"] is None:
        return Cell(value, f"[n/a] n={estimate['n']}")
    low, high, p = estimate["low"], estimate["high"], estimate.get("p_holm")
    tone = ""
    if better and (low > 0 or high < 0) and (p is None or p <= LEVEL):
        tone = "better" if (low > 0) == (better == "higher") else "worse"
    interval = f"[{low:+z.2f}, {high:+z.2f}]"
    if share:
        interval = f"[{100 * low:+z.0f}, {100 * high:+z.0f}]"
    shown = _probability(p)
    return Cell(value, f"{interval} n={estimate['n']}{shown and ' ' + shown}", tone)


def _probability(p: float | None) -> str:
    if p is None:
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def _minus_half(estimate: Mapping[str, Any]) -> dict[str, Any]:
    shifted = {
        key: None if estimate[key] is None else estimate[key] - 0.5
        for key in ("mean", "low", "high")
    }
    return {"n": estimate["n"], **shifted, "p_holm": estimate.get("p_holm")}
