"""Training curves as SVG, legible on a light and on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

TRAIN, VALIDATION, CHOSEN, REJECTED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
INK = "#808894"  # in the middle between black and white


@dataclass(frozen=True)
class Curve:
    """A line of a plot: which metric, under which name, in which colour.

    `error` is the metric with its standard error, of which twice is drawn to either side.
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
    errors: Sequence[float]  # 0 where none is known


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
        (Curve("kl/per_token", "held-out prompts, ± 2 SE", VALIDATION, "kl/per_token_se"),),
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
        (Curve(LENGTH, "held-out prompts", VALIDATION),),
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
    svgs = [
        (title, _draw(lines, (min(steps), max(steps)), kl_budget if title == KL_TITLE else None))
        for title, lines in drawn
        if any(line.steps for line in lines)
    ]
    return [(title, _on_a_page(svg, number, title)) for number, (title, svg) in enumerate(svgs)]


def _with_length(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line with the mean length of the answers that the KL was measured on."""
    if not line.get("kl/sequences") or "kl/tokens" not in line:
        return line
    return {**line, LENGTH: line["kl/tokens"] / line["kl/sequences"]}


def _on_a_page(svg: str, number: int, title: str) -> str:
    """With a name for those who do not see it, and ids that no other plot has."""
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1plot{number}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _plotted(metrics: Sequence[Mapping[str, Any]], curve: Curve) -> Plotted:
    lines = [line for line in metrics if curve.key in line]
    return Plotted(
        curve,
        steps=[int(line["step"]) for line in lines],
        values=[float(line[curve.key]) for line in lines],
        errors=[float(line.get(curve.error, 0.0)) for line in lines],
    )


def _draw(lines: Sequence[Plotted], steps: tuple[int, int], limit: float | None) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
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
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(4.6, 2.7), layout="constrained")
        for line in lines:
            _add(axes, line)
        if limit is not None:
            axes.axhline(limit, color=REJECTED, lw=1.2, ls="--", label=f"budget {limit:g}")
        first, last = steps
        margin = 0.03 * (last - first) or 0.5
        axes.set_xlim(first - margin, last + margin)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.25, lw=0.6)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _add(axes: Any, line: Plotted) -> None:
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
    if any(line.errors):
        pairs = list(zip(line.values, line.errors, strict=True))
        low, high = [v - 2 * e for v, e in pairs], [v + 2 * e for v, e in pairs]
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.2, lw=0)
