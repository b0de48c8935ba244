"""Training curves as SVG, legible on a light and on a dark page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TRAIN, VALIDATION, CHOSEN, REJECTED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
INK = "#808894"  # in the middle between black and white


@dataclass(frozen=True)
class Curve:
    """A line of a plot: which metric, under which name, in which colour."""

    key: str
    label: str
    colour: str


PLOTS: tuple[tuple[str, tuple[Curve, ...]], ...] = (
    (
        "Reward gap (chosen − rejected)",
        (
            Curve("rewards/margins", "train", TRAIN),
            Curve("eval_rewards/margins", "validation", VALIDATION),
        ),
    ),
    (
        "DPO loss",
        (Curve("loss", "train", TRAIN), Curve("eval_loss", "validation", VALIDATION)),
    ),
    (
        "Rewards (train)",
        (
            Curve("rewards/chosen", "chosen", CHOSEN),
            Curve("rewards/rejected", "rejected", REJECTED),
        ),
    ),
)


def training_plots(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of every plot that has a point, from the lines of metrics.jsonl."""
    plots = []
    for title, curves in PLOTS:
        lines = [(curve, _points(metrics, curve.key)) for curve in curves]
        if any(points for _, points in lines):
            plots.append((title, _draw(lines)))
    return plots


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[key])) for line in metrics if key in line]


def _draw(lines: Sequence[tuple[Curve, Sequence[tuple[int, float]]]]) -> str:
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
        for curve, points in lines:
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if len(points) < 12 else None
                axes.plot(
                    steps,
                    values,
                    color=curve.colour,
                    label=curve.label,
                    lw=2,
                    marker=marker,
                    markersize=4,
                )
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
