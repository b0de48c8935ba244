"""Cells that several reports show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_dist.intervals import half_width
from dpo_dist.reporting.tables import ABSENT, Cell, share_cell


def kl_cell(training: Mapping[str, Any]) -> Cell:
    """The KL of `training_figures`, ± its 95 % interval, and where it is not that of the model
    itself, the step that it was measured at."""
    kl = training["kl"]
    if kl is None:
        return Cell(ABSENT)
    error = "" if kl["se"] is None else f"± {half_width(kl['se']):.2g} "
    where = "" if kl["step"] == training["selected_step"] else f", step {kl['step']}"
    return Cell(f"{kl['per_token']:.3g}", f"{error}n={kl['answers']}{where}")


def steps_cell(training: Mapping[str, Any]) -> Cell:
    """The steps trained, and the one that became the model where it is not the last."""
    steps, selected = training["steps"], training["selected_step"]
    return Cell(str(steps), "" if selected == steps else f"step {selected} selected")


def margin_cell(training: Mapping[str, Any]) -> Cell:
    """The last reward gap on validation pairs."""
    margin = training["margin"]
    return number_cell(None if margin is None else margin["last"], "+.3f")


def length_cell(length: Mapping[str, Any] | None) -> Cell:
    """The mean difference of dpo's answers from sft's, in its unit, with its interval and its
    share of sft's mean; from "length" of scores.json."""
    if length is None or length["delta"] is None:
        return Cell(ABSENT)
    delta, sft = length["delta"], length["arms"]["sft"]["mean"]
    interval = "[n/a]"
    if delta["low"] is not None:
        interval = f"[{delta['low']:+.1f}, {delta['high']:+.1f}]"
    of_sft = f" ({100 * delta['mean'] / sft:+.0f} %)" if sft else ""
    return Cell(f"{delta['mean']:+.1f} {length['unit']}", f"{interval}{of_sft}")


def number_cell(value: float | None, form: str) -> Cell:
    """A figure without an interval, such as a loss."""
    return Cell(ABSENT if value is None else format(value, form))


def optional_share(estimate: Mapping[str, Any] | None) -> Cell:
    """A share with its interval, where it was measured."""
    return Cell(ABSENT) if estimate is None else share_cell(estimate)
