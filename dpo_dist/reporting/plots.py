"""Training curves as SVG, legible on a light and on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dpo_dist.intervals import half_width

TRAIN, VALIDATION, CHOSEN, REJECTED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
INK = "#808894"  # in the middle between black and white
PAGE_COLOURS = {  # the variables of style.css
    TRAIN: "var(--accent)",
    VALIDATION: "var(--amber)",
    CHOSEN: "var(--better)",
    REJECTED: "var(--worse)",
    INK: "var(--soft)",
}
STYLE = {
    "svg.hashsalt": "dpo_dist",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Curve:
    """A line of a plot: which metric, under which name, in which colour.

    `error` is the metric with its standard error, whose 95 % interval is drawn.
    """

    key: str
    label: str
    colour: str
    error: str = ""


@dataclass(frozen=True)
class Plotted:
    """A curve's points, as arrays of the same length."""

    curve: Curve
    steps: Sequence[int]
    values: Sequence[float]
    below: Sequence[float]  # how far the interval reaches; 0 where none is known
    above: Sequence[float]


@dataclass(frozen=True)
class Level:
    """A value that a curve is read against."""

    value: float
    label: str
    colour: str = INK


KL_TITLE = "KL from the reference, own answers (nats per token)"
LENGTH = "kl/length"
PLOTS: tuple[tuple[str, tuple[Curve, ...]], ...] = (
    (
        "Reward gap (chosen − rejected)",
        (
            Curve("rewards/margins", "train", TRAIN),
            Curve("eval_rewards/margins", "validation", VALIDATION),
        ),
    ),
    (
        KL_TITLE,
        (
            Curve(
                "kl/per_token",
                "prompts of validation pairs, 95 % interval",
                VALIDATION,
                "kl/per_token_se",
            ),
        ),
    ),
    (
        "Validation log-probability (nats per token)",
        (
            Curve("eval_logps/chosen_per_token", "chosen", CHOSEN),
            Curve("eval_logps/rejected_per_token", "rejected", REJECTED),
        ),
    ),
    (
        "Length of the policy's own answers (tokens)",
        (Curve(LENGTH, "prompts of validation pairs", VALIDATION),),
    ),
    (
        "Accuracy (chosen above rejected)",
        (
            Curve("rewards/accuracies", "train", TRAIN),
            Curve("eval_rewards/accuracies", "validation", VALIDATION),
        ),
    ),
    (
        "Rewards (train)",
        (
            Curve("rewards/chosen", "chosen", CHOSEN),
            Curve("rewards/rejected", "rejected", REJECTED),
        ),
    ),
    (
        "DPO loss",
        (Curve("loss", "train", TRAIN), Curve("eval_loss", "validation", VALIDATION)),
    ),
)


def training_plots(
    metrics: Sequence[Mapping[str, Any]], kl_budget: float | None = None
) -> list[tuple[str, str]]:
    """(title, SVG) of every plot that has a point, from the lines of metrics.jsonl.

    All plots show the same steps, so that one can be read below the other.
    """
    metrics = [_with_length(line) for line in metrics]
    drawn = [(title, [_plotted(metrics, curve) for curve in curves]) for title, curves in PLOTS]
    steps = [step for _, lines in drawn for line in lines for step in line.steps]
    budget = None if kl_budget is None else Level(kl_budget, f"budget {kl_budget:g}", REJECTED)
    svgs = [
        (title, _draw(lines, (min(steps), max(steps)), budget if title == KL_TITLE else None))
        for title, lines in drawn
        if any(line.steps for line in lines)
    ]
    return _on_a_page(svgs, "plot")


def _with_length(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line with the mean length of the answers that the KL was measured on."""
    if not line.get("kl/sequences") or "kl/tokens" not in line:
        return line
    return {**line, LENGTH: line["kl/tokens"] / line["kl/sequences"]}


def _on_a_page(svgs: Sequence[tuple[str, str]], prefix: str) -> list[tuple[str, str]]:
    """With a name for those who do not see them, and ids that no other plot has."""
    found = []
    for number, (title, svg) in enumerate(svgs):
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}{number}-", svg)
        named = f'<svg role="img" aria-label="{escape(title)}" '
        found.append((title, svg.replace("<svg ", named, 1)))
    return found


WIN_RATE = "Preferred to SFT (judge, 95 % interval)"
KL_BY_ROUND = "KL at the end of a round (nats per token)"


def round_plots(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of the win rate and of the KL by round, from `round_figures`, as far as they
    were measured."""
    rates = [(r["round"], r["evaluation"]["preferred"]) for r in rounds]
    rates = [(number, rate) for number, rate in rates if rate and rate["mean"] is not None]
    references = {r["training"]["reference"] for r in rounds}
    reference = references.pop() if len(references) == 1 else "its start"
    kls = [(r["round"], r["training"]["kl"]) for r in rounds]
    kls = [(number, kl) for number, kl in kls if kl is not None]
    errors = [half_width(kl["se"] or 0.0) for _, kl in kls]
    win_rate = Plotted(
        Curve("preferred", "SFT+DPO", TRAIN),
        steps=[number for number, _ in rates],
        values=[rate["mean"] for _, rate in rates],
        below=[_distance(rate["mean"], rate["low"]) for _, rate in rates],
        above=[_distance(rate["mean"], rate["high"]) for _, rate in rates],
    )
    kl = Plotted(
        Curve("kl", f"from {reference}, 95 % interval", VALIDATION),
        steps=[number for number, _ in kls],
        values=[kl["per_token"] for _, kl in kls],
        below=errors,
        above=errors,
    )
    span = (1, len(rounds))
    plots = ((WIN_RATE, win_rate, Level(0.5, "chance")), (KL_BY_ROUND, kl, None))
    svgs = [
        (title, _draw([line], span, level, unit="round"))
        for title, line, level in plots
        if line.steps
    ]
    return _on_a_page(svgs, "round")


def themed(svg: str) -> str:
    """With the page's own colours, which have enough contrast on its light and on its dark side."""
    return re.sub("|".join(PAGE_COLOURS), lambda found: PAGE_COLOURS[found.group()], svg)


def _distance(mean: float, limit: float | None) -> float:
    return 0.0 if limit is None else abs(mean - limit)


def _plotted(metrics: Sequence[Mapping[str, Any]], curve: Curve) -> Plotted:
    lines = [line for line in metrics if curve.key in line]
    errors = [half_width(float(line.get(curve.error, 0.0))) for line in lines]
    return Plotted(
        curve,
        steps=[int(line["step"]) for line in lines],
        values=[float(line[curve.key]) for line in lines],
        below=errors,
        above=errors,
    )


def _draw(
    lines: Sequence[Plotted], steps: tuple[int, int], level: Level | None, unit: str = "step"
) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(4.6, 2.7), layout="constrained")
        for line in lines:
            _add(axes, line, bars=unit == "round")
        if level is not None:
            axes.axhline(level.value, color=level.colour, lw=1.2, ls="--", label=level.label)
        first, last = steps
        margin = 0.03 * (last - first) or 0.5
        axes.set_xlim(first - margin, last + margin)
        axes.set_xlabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.25, lw=0.6)
        axes.legend(frameon=False)
        svg = as_svg(figure)
        pyplot.close(figure)
    return svg


def as_svg(figure: Any) -> str:
    """A figure of matplotlib as an SVG element, to be put into a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _add(axes: Any, line: Plotted, *, bars: bool) -> None:
    if not line.steps:
        return
    colour, marker = line.curve.colour, "o" if len(line.steps) < 12 else None
    axes.plot(
        *(line.steps, line.values),
        color=colour,
        label=line.curve.label,
        lw=2,
        marker=marker,
        markersize=4,
    )
    if not any((*line.below, *line.above)):
        return
    if bars:
        reach = (line.below, line.above)
        axes.errorbar(line.steps, line.values, yerr=reach, fmt="none", ecolor=colour, capsize=3)
    else:
        low = [value - reach for value, reach in zip(line.values, line.below, strict=True)]
        high = [value + reach for value, reach in zip(line.values, line.above, strict=True)]
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.2, lw=0)
