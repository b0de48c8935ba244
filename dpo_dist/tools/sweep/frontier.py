"""The plot of a sweep's points: the measure over the KL, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_dist.reporting.plots import INK, STYLE, TRAIN, VALIDATION, as_svg

CHANCE = 0.5  # the win rate and the accuracy at chance level


@dataclass(frozen=True)
class FrontierPoint:
    """A point of the plot: a KL and a share, each with its interval. `ahead`: no other point has at
    least this share at no more KL and is better in one of them."""

    label: str
    kl: float
    kl_error: float
    share: float
    low: float
    high: float
    ahead: bool = False


def frontier_plot(marks: Sequence[FrontierPoint], *, x_label: str, y_label: str) -> str:
    """The points with their intervals, a line through the points that are ahead, and a line at
    chance."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.4, 4.2), layout="constrained")
        ahead = sorted((m for m in marks if m.ahead), key=lambda m: m.kl)
        axes.plot([m.kl for m in ahead], [100 * m.share for m in ahead], color=TRAIN, lw=1, ls=":")
        for mark in marks:
            colour = TRAIN if mark.ahead else VALIDATION
            share = 100 * mark.share
            axes.errorbar(
                [mark.kl],
                [share],
                xerr=[mark.kl_error],
                yerr=[[share - 100 * mark.low], [100 * mark.high - share]],
                fmt="o",
                color=colour,
                ecolor=colour,
                elinewidth=1.2,
                capsize=3,
            )
            at = (mark.kl, share)
            axes.annotate(mark.label, at, xytext=(7, 6), textcoords="offset points", color=INK)
        axes.axhline(100 * CHANCE, color=INK, lw=1, ls="--")
        axes.margins(x=0.2, y=0.1)
        axes.set_xlim(left=0)  # no KL is negative
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.25, lw=0.6)
        svg = as_svg(figure)
        pyplot.close(figure)
    return svg
