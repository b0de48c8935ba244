"""The curves of a training."""

from __future__ import annotations

import re

from dpo_dist.reporting.plots import training_plots
from tests.report_figures import metric_lines


def test_the_kl_has_its_band_and_its_budget() -> None:
    bare = [{"step": step, "kl/per_token": 0.1 * step} for step in (10, 20, 30)]
    lines = metric_lines(*(line | {"kl/per_token_se": 0.02} for line in bare))
    ((title, with_budget),) = training_plots(lines, kl_budget=0.25)
    assert title.startswith("KL from the reference")
    assert "budget 0.25" in with_budget and "95 % interval" in with_budget
    assert "FillBetweenPolyCollection" in with_budget
    ((_, without),) = training_plots(lines)
    assert "budget" not in without
    ((_, no_band),) = training_plots(metric_lines(*bare))
    assert "FillBetweenPolyCollection" not in no_band
    # The budget belongs to the KL, whatever else is drawn.
    more = metric_lines({"step": 30, "loss": 0.6})
    plots = dict(training_plots([*lines, *more], kl_budget=0.25))
    assert "budget" not in plots["DPO loss"]


def test_all_plots_share_their_steps() -> None:
    """Validation is measured from step 40 on; its plot begins at step 1 like the others."""
    lines = [{"step": step, "loss": 0.6} for step in range(1, 101)]
    late = [{"step": step, "eval_logps/chosen_per_token": -1.0} for step in (40, 100)]
    plots = training_plots(metric_lines(*lines, *late))
    first, second = (
        re.findall(r">(\d+)</text>", svg[svg.index("axis_1") : svg.index("axis_2")])
        for _, svg in plots
    )
    assert first == second and int(first[0]) < 40
