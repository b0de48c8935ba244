"""A sweep's report: its table, the frontier, what came out and what that does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_dist.intervals import half_width
from dpo_dist.reporting.cells import (
    kl_cell,
    length_cell,
    margin_cell,
    optional_share,
    steps_cell,
)
from dpo_dist.reporting.page import render_template
from dpo_dist.reporting.plots import themed
from dpo_dist.reporting.tables import (
    ABSENT,
    Cell,
    Table,
    decoding_name,
    share_cell,
    to_markdown,
    to_text,
)
from dpo_dist.reporting.text import plain_markdown
from dpo_dist.storage.artifacts import write_json, write_text
from dpo_dist.tools.sweep.frontier import FrontierPoint, frontier_plot

MEASURES = {
    "preferred": "Preferred to SFT (judge, %, 95 % interval)",
    "accuracy": "Validation accuracy (%, 95 % interval)",
}


def write_report(figures: Mapping[str, Any], out: Path) -> None:
    """Write the report's files. `figures` are those of `phases.sweep.figures`; points without
    figures are shown as not complete."""
    table, marks = sweep_table(figures), frontier(figures)
    lead, limits = findings(figures), caveats(figures)
    ahead = [mark.label for mark in marks if mark.ahead]
    write_json(
        out / "sweep.json", {**figures, "frontier": ahead, "findings": lead, "caveats": limits}
    )
    plot = _plot(figures, marks)
    (out / "frontier.svg").unlink(missing_ok=True)
    if plot:
        write_text(out / "frontier.svg", plot + "\n")
    said = "\n".join(f"- {line}" for line in (*lead, *limits))
    write_text(out / "table.txt", f"{to_text(table)}\n{said}\n")
    write_text(out / "sweep.md", _markdown(figures, table, lead, limits, bool(plot)))
    write_text(out / "sweep.html", _page(figures, table, plot, lead, limits))


def sweep_table(figures: Mapping[str, Any]) -> Table:
    """A row per point; columns of what was never measured are left out."""
    points = figures["points"]
    rows = [_cells(point) for point in points]
    shown = [header for header in _HEADERS if any(row[header].value != ABSENT for row in rows)]
    return Table(
        ("Point", *(_header(header, figures) for header in shown)),
        tuple(
            (point["point"], tuple(row[header] for header in shown))
            for point, row in zip(points, rows, strict=True)
        ),
    )


_HEADERS = (
    *("Steps", "KL", "Validation accuracy", "Margin"),
    *("Preferred to SFT", "Length over SFT", "Cut off"),
)


def _header(header: str, figures: Mapping[str, Any]) -> str:
    return f"KL from {_reference(figures)} (nats/token, ± 95 %)" if header == "KL" else header


def _reference(figures: Mapping[str, Any]) -> str:
    named = {p["training"]["reference"] for p in figures["points"] if _has_kl(p)}
    assert len(named) == 1, "all points share one reference"
    return str(named.pop())


def _has_kl(point: Mapping[str, Any]) -> bool:
    return point["training"] is not None and point["training"]["kl"] is not None


def _cells(point: Mapping[str, Any]) -> dict[str, Cell]:
    training, evaluation = point["training"], point["evaluation"]
    cells = dict.fromkeys(_HEADERS, Cell(ABSENT))
    if training is None:
        return cells | {"Steps": Cell("not complete")}
    cells["Steps"] = steps_cell(training)
    cells["KL"] = kl_cell(training)
    cells["Margin"] = margin_cell(training)
    cells["Validation accuracy"] = optional_share(training["accuracy"])
    if evaluation is not None:
        cells["Length over SFT"] = length_cell(evaluation["length"])
        cells["Cut off"] = share_cell(evaluation["cut_off"])
        cells["Preferred to SFT"] = optional_share(evaluation["preferred"])
    return cells


def frontier(figures: Mapping[str, Any]) -> list[FrontierPoint]:
    """The points that have both a KL and the measure, those marked that no other is ahead of."""
    marks = []
    for point in figures["points"]:
        share = measured(point, figures["measure"])
        if share is None or share["mean"] is None or not _has_kl(point):
            continue
        mean, kl = share["mean"], point["training"]["kl"]
        low, high = (mean if share[end] is None else share[end] for end in ("low", "high"))
        error = half_width(kl["se"] or 0.0)
        marks.append(FrontierPoint(point["point"], kl["per_token"], error, mean, low, high))
    return [replace(mark, ahead=not any(_beats(o, mark) for o in marks)) for mark in marks]


def _beats(a: FrontierPoint, b: FrontierPoint) -> bool:
    return a.kl <= b.kl and a.share >= b.share and (a.kl, a.share) != (b.kl, b.share)


def measured(point: Mapping[str, Any], measure: str) -> Mapping[str, Any] | None:
    """A point's win rate, or its validation accuracy where nobody judges."""
    part = point["evaluation"] if measure == "preferred" else point["training"]
    found: Mapping[str, Any] | None = None if part is None else part[measure]
    return found


def findings(figures: Mapping[str, Any]) -> list[str]:
    """What came out, in sentences."""
    points, measure = figures["points"], figures["measure"]
    name = "win rate over SFT" if measure == "preferred" else "validation accuracy"
    missing = [p["point"] for p in points if measured(p, measure) is None]
    known = {p["point"]: found for p in points if (found := measured(p, measure)) is not None}
    known = {point: found for point, found in known.items() if found["mean"] is not None}
    sentences = []
    if known:
        highest = max(found["mean"] for found in known.values())
        best = [point for point, found in known.items() if found["mean"] == highest]
        cell = share_cell(known[best[0]])
        whose = best[0] if len(best) == 1 else f"{len(best)} points share"
        verb = "has the" if len(best) == 1 else "the"
        sentences.append(f"{whose} {verb} highest {name}: {cell}.")
    if missing:
        sentences.append(f"Without a {name}: {'; '.join(missing)}.")
    return sentences


def caveats(figures: Mapping[str, Any]) -> list[str]:
    """What a reader may not conclude."""
    tried = len(figures["points"]) + len(figures["tried_before"])
    data = "held-out prompts" if figures["evaluated"] else "validation pairs"
    before = figures["tried_before"]
    earlier = f" ({len(before)} of them in earlier sweeps: {'; '.join(before)})" if before else ""
    lines = [
        f"{tried} points were tried on the same {data}{earlier}. The best of several is best "
        "partly by chance, so its interval is optimistic. Confirm it on fresh prompts, which no "
        "point was compared on, before relying on it."
    ]
    if figures["measure"] == "accuracy":
        lines.append(
            "Validation accuracy measures how well the pairs' labels are reproduced, not whether "
            "answers got better."
        )
    lines += [
        "Two points with overlapping intervals may still differ, and a difference in means may be "
        "chance: `dpo-dist compare` on their directories gives the difference paired by prompt.",
        "Every point was trained once, with one seed: another seed would shift the results and "
        "possibly the order.",
        "The KL is measured on the policy's own answers to the validation prompts at temperature "
        "1. It says how far a point moved, not whether that was good.",
    ]
    if "train.beta" in figures["swept"]:
        lines.append(
            "Margins are β times a log-ratio, so they cannot be compared between values of β."
        )
    if keys := [key for key in figures["swept"] if key.startswith("evaluate.")]:
        lines.append(
            f"The points were evaluated in different ways ({', '.join(keys)}), so their "
            "evaluation figures are not comparable."
        )
    return lines


def _plot(figures: Mapping[str, Any], marks: Sequence[FrontierPoint]) -> str:
    if not marks:
        return ""
    return frontier_plot(
        marks,
        x_label=f"KL from {_reference(figures)}, own answers (nats per token, 95 % interval)",
        y_label=MEASURES[figures["measure"]],
    )


def _decoding(figures: Mapping[str, Any]) -> str:
    """At which decoding the points were evaluated, where it was one for all."""
    names = {
        decoding_name(p["evaluation"]["decoding"]) for p in figures["points"] if p["evaluation"]
    }
    return names.pop() if len(names) == 1 else ""


def _markdown(
    figures: Mapping[str, Any],
    table: Table,
    lead: Sequence[str],
    limits: Sequence[str],
    plotted: bool,
) -> str:
    parts = [f"# {figures['run']}: {', '.join(figures['swept'])}\n"]
    parts += [f"- {plain_markdown(line)}" for line in lead]
    decoding = _decoding(figures)
    parts += [f"\n## Points{f', {decoding}' if decoding else ''}\n", to_markdown(table)]
    parts += [f"- [{p['point']}]({p['report']}report.md)" for p in figures["points"] if p["report"]]
    if plotted:
        parts.append("\n![Frontier](frontier.svg)\n")
    parts.append("## What this does not show\n")
    parts += [f"- {line}" for line in limits]
    return "\n".join(parts) + "\n"


def _page(
    figures: Mapping[str, Any],
    table: Table,
    plot: str,
    lead: Sequence[str],
    limits: Sequence[str],
) -> str:
    from markupsafe import Markup

    return render_template(
        "sweep.html.j2",
        "dpo_dist.tools.sweep",
        run=figures["run"],
        swept=figures["swept"],
        decoding=_decoding(figures),
        table=table,
        plot=Markup(themed(plot)),
        reports={p["point"]: f"{p['report']}report.html" for p in figures["points"] if p["report"]},
        measure=MEASURES[figures["measure"]],
        findings=lead,
        caveats=limits,
    )
