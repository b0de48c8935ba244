"""A sweep's report: table, frontier, findings and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpo_dist.intervals import half_width
from dpo_dist.reporting.page import render_template
from dpo_dist.reporting.plots import themed
from dpo_dist.reporting.tables import (
    ABSENT,
    Cell,
    Table,
    decoding_name,
    kl_cell,
    length_cell,
    margin_cell,
    share_cell,
    steps_cell,
    to_markdown,
    to_text,
)
from dpo_dist.reporting.text import plain_markdown
from dpo_dist.storage.artifacts import write_text
from dpo_dist.storage.figures import write_figures
from dpo_dist.tools.sweep.figures import Measure, SweepFigures, SweepPoint, SweepReport
from dpo_dist.tools.sweep.frontier import FrontierPoint, frontier_plot

MEASURES: dict[Measure, str] = {
    "preferred": "Preferred to SFT (judge, %, 95 % interval)",
    "accuracy": "Validation accuracy (%, 95 % interval)",
}


def write_report(figures: SweepFigures, out: Path) -> None:
    """Write the report's files to `out`. Points without figures are shown as not complete."""
    table, marks = sweep_table(figures), frontier(figures)
    report = SweepReport(
        **dict(figures),
        frontier=tuple(mark.label for mark in marks if mark.ahead),
        findings=tuple(findings(figures)),
        caveats=tuple(caveats(figures)),
    )
    write_figures(out / "sweep.json", report)
    plot = _plot(figures, marks)
    (out / "frontier.svg").unlink(missing_ok=True)
    if plot:
        write_text(out / "frontier.svg", plot + "\n")
    sentences = "\n".join(f"- {line}" for line in (*report.findings, *report.caveats))
    write_text(out / "table.txt", f"{to_text(table)}\n{sentences}\n")
    write_text(out / "sweep.md", _markdown(report, table, bool(plot)))
    write_text(out / "sweep.html", _page(report, table, plot))


def sweep_table(figures: SweepFigures) -> Table:
    """A row per point. Columns without any value are left out."""
    rows = {point.point: _cells(point) for point in figures.points}
    shown = [h for h in _HEADERS if any(cells[h].value != ABSENT for cells in rows.values())]
    return Table(
        ("Point", *(_header(header, figures) for header in shown)),
        tuple((name, tuple(cells[h] for h in shown)) for name, cells in rows.items()),
    )


_HEADERS = (
    *("Steps", "KL", "Validation accuracy", "Margin"),
    *("Preferred to SFT", "Length over SFT", "Cut off"),
)


def _header(header: str, figures: SweepFigures) -> str:
    return f"KL from {_reference(figures)} (nats/token, ± 95 %)" if header == "KL" else header


def _reference(figures: SweepFigures) -> str:
    (name,) = {p.training.reference for p in figures.points if p.training and p.training.kl}
    return name  # all points share one reference


def _cells(point: SweepPoint) -> dict[str, Cell]:
    training, evaluation = point.training, point.evaluation
    cells = dict.fromkeys(_HEADERS, Cell(ABSENT))
    if training is None:
        return cells | {"Steps": Cell("not complete")}
    cells["Steps"] = steps_cell(training)
    cells["KL"] = kl_cell(training)
    cells["Margin"] = margin_cell(training)
    cells["Validation accuracy"] = share_cell(training.accuracy)
    if evaluation is not None:
        cells["Length over SFT"] = length_cell(evaluation.length)
        cells["Cut off"] = share_cell(evaluation.cut_off)
        cells["Preferred to SFT"] = share_cell(evaluation.preferred)
    return cells


def frontier(figures: SweepFigures) -> list[FrontierPoint]:
    """The points that have both a KL and the measure, marked if they are ahead."""
    marks = []
    for point in figures.points:
        share, kl = point.measured(figures.measure), point.training.kl if point.training else None
        if share is None or share.mean is None or kl is None:
            continue
        low = share.mean if share.low is None else share.low
        high = share.mean if share.high is None else share.high
        error = half_width(kl.se or 0.0)
        marks.append(FrontierPoint(point.point, kl.per_token, error, share.mean, low, high))
    return [replace(mark, ahead=not any(_beats(o, mark) for o in marks)) for mark in marks]


def _beats(a: FrontierPoint, b: FrontierPoint) -> bool:
    return a.kl <= b.kl and a.share >= b.share and (a.kl, a.share) != (b.kl, b.share)


def findings(figures: SweepFigures) -> list[str]:
    """The results in sentences."""
    points, measure = figures.points, figures.measure
    name = "win rate over SFT" if measure == "preferred" else "validation accuracy"
    missing = [p.point for p in points if p.measured(measure) is None]
    known = {
        p.point: found
        for p in points
        if (found := p.measured(measure)) is not None and found.mean is not None
    }
    sentences = []
    if known:
        highest = max(found.mean or 0.0 for found in known.values())
        best = [point for point, found in known.items() if found.mean == highest]
        cell = share_cell(known[best[0]])
        subject = f"{best[0]} has" if len(best) == 1 else f"{len(best)} points share"
        sentences.append(f"{subject} the highest {name}: {cell}.")
    if missing:
        sentences.append(f"Without a {name}: {'; '.join(missing)}.")
    return sentences


def caveats(figures: SweepFigures) -> list[str]:
    """What the figures do not show."""
    tried = len(figures.points) + len(figures.tried_before)
    data = "held-out prompts" if figures.evaluated else "validation pairs"
    before = figures.tried_before
    earlier = f" ({len(before)} of them in earlier sweeps: {'; '.join(before)})" if before else ""
    lines = [
        f"{tried} points were tried on the same {data}{earlier}. The best of several is best "
        "partly by chance, so its interval is optimistic. Before you rely on it, confirm it on "
        "fresh prompts, on which no point was compared."
    ]
    if figures.measure == "accuracy":
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
    if "train.beta" in figures.swept:
        lines.append(
            "Margins are β times a log-ratio, so they cannot be compared between values of β."
        )
    if keys := [key for key in figures.swept if key.startswith("evaluate.")]:
        lines.append(
            f"The points were evaluated in different ways ({', '.join(keys)}), so their "
            "evaluation figures are not comparable."
        )
    return lines


def _plot(figures: SweepFigures, marks: Sequence[FrontierPoint]) -> str:
    if not marks:
        return ""
    return frontier_plot(
        marks,
        x_label=f"KL from {_reference(figures)}, own answers (nats per token, 95 % interval)",
        y_label=MEASURES[figures.measure],
    )


def _decoding(figures: SweepFigures) -> str:
    """The decoding of all points' evaluations; empty if they differ."""
    names = {decoding_name(p.evaluation.decoding) for p in figures.points if p.evaluation}
    return names.pop() if len(names) == 1 else ""


def _markdown(report: SweepReport, table: Table, plotted: bool) -> str:
    parts = [f"# {report.run}: {', '.join(report.swept)}\n"]
    parts += [f"- {plain_markdown(line)}" for line in report.findings]
    decoding = _decoding(report)
    parts += [f"\n## Points{f', {decoding}' if decoding else ''}\n", to_markdown(table)]
    parts += [f"- [{p.point}]({p.report}report.md)" for p in report.points if p.report]
    if plotted:
        parts.append("\n![Frontier](frontier.svg)\n")
    parts.append("## What this does not show\n")
    parts += [f"- {line}" for line in report.caveats]
    return "\n".join(parts) + "\n"


def _page(report: SweepReport, table: Table, plot: str) -> str:
    from markupsafe import Markup

    return render_template(
        "sweep.html.j2",
        "dpo_dist.tools.sweep",
        report=report,
        decoding=_decoding(report),
        table=table,
        plot=Markup(themed(plot)),
        measure=MEASURES[report.measure],
    )
