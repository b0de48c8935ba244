"""Training curves as SVG, for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dpo_dist.intervals import half_width
from dpo_dist.reporting.rounds import RoundFigures
from dpo_dist.training.metrics_log import MetricLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, VALIDATION, CHOSEN, REJECTED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
INK = "#808894"  # a grey that is legible on black and on white
PAGE_COLOURS = {  # variables of style.css
    TRAIN: "var(--accent)",
    VALIDATION: "var(--amber)",
    CHOSEN: "var(--better)",
    REJECTED: "var(--worse)",
    INK: "var(--soft)",
}
STYLE = {
    "svg.hashsalt": "dpo_dist",  # makes the file reproducible
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
    """A curve of a plot. `key` is its metric; `error` is the metric with its standard error, for
    which the 95 % interval is drawn."""

    key: str
    label: str
    colour: str
    error: str = ""


@dataclass(frozen=True)
class Plotted:
    """A curve with its points (step, value, low, high). Without an interval, low and high are the
    value."""

    curve: Curve
    points: Sequence[tuple[int, float, float, float]]


@dataclass(frozen=True)
class Level:
    """A horizontal line for comparison."""

    value: float
    label: str
    colour: str = INK


KL_TITLE = "KL from the reference, own answers (nats per token)"
LENGTH = "kl/length"
PLOTS = {
    "Reward gap (chosen − rejected)": (
        Curve("rewards/margins", "train", TRAIN),
        Curve("eval_rewards/margins", "validation", VALIDATION),
    ),
    KL_TITLE: (
        Curve("kl/per_token", "validation prompts, 95 % interval", VALIDATION, "kl/per_token_se"),
    ),
    "Validation log-probability (nats per token)": (
        Curve("eval_logps/chosen_per_token", "chosen", CHOSEN),
        Curve("eval_logps/rejected_per_token", "rejected", REJECTED),
    ),
    "Length of the policy's own answers (tokens)": (
        Curve(LENGTH, "validation prompts", VALIDATION),
    ),
    "Accuracy (chosen above rejected)": (
        Curve("rewards/accuracies", "train", TRAIN),
        Curve("eval_rewards/accuracies", "validation", VALIDATION),
    ),
    "Rewards (train)": (
        Curve("rewards/chosen", "chosen", CHOSEN),
        Curve("rewards/rejected", "rejected", REJECTED),
    ),
    "DPO loss": (
        Curve("loss", "train", TRAIN),
        Curve("eval_loss", "validation", VALIDATION),
    ),
}


def training_plots(
    metrics: Sequence[MetricLine], kl_budget: float | None = None
) -> list[tuple[str, str]]:
    """(title, SVG) of every plot with data, from the lines of metrics.jsonl. All plots show the
    same range of steps, so that they can be compared."""
    metrics = [_with_length(line) for line in metrics]
    plots = {
        title: [_plotted(metrics, curve) for curve in curves] for title, curves in PLOTS.items()
    }
    steps = [point[0] for lines in plots.values() for line in lines for point in line.points]
    budget = None if kl_budget is None else Level(kl_budget, f"budget {kl_budget:g}", REJECTED)
    svgs = [
        (title, _draw(lines, (min(steps), max(steps)), budget if title == KL_TITLE else None))
        for title, lines in plots.items()
        if any(line.points for line in lines)
    ]
    return _for_page(svgs, "plot")


def _with_length(line: MetricLine) -> MetricLine:
    """The line, with the mean length of the answers on which the KL was measured."""
    answers, tokens = line.values.get("kl/sequences"), line.values.get("kl/tokens")
    if not answers or tokens is None:
        return line
    return replace(line, values={**line.values, LENGTH: tokens / answers})


def _for_page(svgs: Sequence[tuple[str, str]], prefix: str) -> list[tuple[str, str]]:
    """The plots with accessible names and with ids that are unique on the page."""
    found = []
    for number, (title, svg) in enumerate(svgs):
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}{number}-", svg)
        named = f'<svg role="img" aria-label="{escape(title)}" '
        found.append((title, svg.replace("<svg ", named, 1)))
    return found


WIN_RATE = "Preferred to SFT (judge, 95 % interval)"
KL_BY_ROUND = "KL at the end of a round (nats per token)"


def round_plots(rounds: Sequence[RoundFigures]) -> list[tuple[str, str]]:
    """(title, SVG) of the win rate and of the KL by round, if they were measured."""
    rates, kls = [], []
    for figures in rounds:
        rate, kl = figures.evaluation.preferred, figures.training.kl
        if rate is not None and (mean := rate.mean) is not None:
            low, high = (mean if end is None else end for end in (rate.low, rate.high))
            rates.append((figures.round, mean, low, high))
        if kl is not None:
            kls.append(_point(figures.round, kl.per_token, kl.se or 0.0))
    references = {figures.training.reference for figures in rounds}
    reference = references.pop() if len(references) == 1 else "its start"
    win_rate = Plotted(Curve("preferred", "SFT+DPO", TRAIN), rates)
    drift = Plotted(Curve("kl", f"from {reference}, 95 % interval", VALIDATION), kls)
    plots = ((WIN_RATE, win_rate, Level(0.5, "chance")), (KL_BY_ROUND, drift, None))
    svgs = [
        (title, _draw([line], (1, len(rounds)), level, unit="round"))
        for title, line, level in plots
        if line.points
    ]
    return _for_page(svgs, "round")


def themed(svg: str) -> str:
    """The SVG with the colours of the page, which have enough contrast in both themes."""
    return re.sub("|".join(PAGE_COLOURS), lambda found: PAGE_COLOURS[found.group()], svg)


def _point(step: int, value: float, error: float) -> tuple[int, float, float, float]:
    reach = half_width(error)
    return step, value, value - reach, value + reach


def _plotted(metrics: Sequence[MetricLine], curve: Curve) -> Plotted:
    points = [
        _point(line.step, line.values[curve.key], line.values.get(curve.error, 0.0))
        for line in metrics
        if curve.key in line.values
    ]
    return Plotted(curve, points)


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


def as_svg(figure: Figure) -> str:
    """A matplotlib figure as an SVG element for a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _add(axes: Axes, line: Plotted, *, bars: bool) -> None:
    if not line.points:
        return
    steps, values, low, high = zip(*line.points, strict=True)
    colour, label = line.curve.colour, line.curve.label
    marker = "o" if len(steps) < 12 else None
    axes.plot(steps, values, c=colour, label=label, lw=2, marker=marker, markersize=4)
    if low == high:
        return
    if bars:
        reach = np.abs(np.array((low, high)) - values)
        axes.errorbar(steps, values, yerr=reach, fmt="none", ecolor=colour, capsize=3)
    else:
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
