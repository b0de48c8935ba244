"""Cells that several reports show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_dist.reporting.tables import ABSENT, Cell


def kl_cell(training: Mapping[str, Any]) -> Cell:
    """The KL of `phases.figures.training_figures`, and where it is not that of the model itself,
    the step that it was measured at."""
    kl = training["kl"]
    if kl is None:
        return Cell(ABSENT)
    error = "" if kl["se"] is None else f"± {2 * kl['se']:.2g} "
    at = training["measured_at"]
    where = "" if at == training["selected_step"] else f", step {at}"
    return Cell(f"{kl['per_token']:.3g}", f"{error}n={kl['answers']}{where}")


def steps_cell(training: Mapping[str, Any]) -> Cell:
    """The steps trained, and the one that became the model where it is not the last."""
    steps, selected = training["steps"], training["selected_step"]
    return Cell(str(steps), "" if selected == steps else f"step {selected} selected")


def length_cell(evaluation: Mapping[str, Any]) -> Cell:
    """The mean difference from SFT in tokens, with its interval and its share of SFT's mean."""
    length = evaluation["length"]
    if length is None:
        return Cell(ABSENT)
    interval = "[n/a]"
    if length["low"] is not None:
        interval = f"[{length['low']:+.1f}, {length['high']:+.1f}]"
    of_sft = ""
    if evaluation["sft_length"]:
        of_sft = f" ({100 * length['mean'] / evaluation['sft_length']:+.0f} %)"
    return Cell(f"{length['mean']:+.1f} tokens", f"{interval}{of_sft}")


def number_cell(value: float | None, form: str) -> Cell:
    """A figure without an interval, such as a loss."""
    return Cell(ABSENT if value is None else format(value, form))
