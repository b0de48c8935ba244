"""Whether beta looks too low or too high, and what to try next: the last of the reflection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_dist.intervals import half_width
from dpo_dist.reporting.sentence import Report, Sentence

CUT_OFF_RISE = 0.05  # more of SFT+DPO's answers than of SFT's that are cut off
STANDS_STILL = 0.01  # nats per token: the whole interval of the KL lies below it
NO_GAP = 1.0  # nats: the margin over beta, where no KL was measured


@dataclass(frozen=True)
class Sign:
    """A figure that speaks for one side, in words."""

    text: str
    figures: tuple[str, ...]


def beta_and_next(report: Report) -> list[Sentence]:
    """The verdict on beta with its signs, then what to try; nothing without a training."""
    training = report["training"]
    if training is None:
        return []
    low = too_low(report)
    high = [] if low else too_high(report)
    signs = low + high
    beta = f"Beta ({training['beta']:g})"
    if low:
        text = f"{beta} looks too low, or the training too long: {_all(low)}."
    elif high:
        text = f"{beta} looks too high, or the training too short: {_all(high)}."
    elif training["kl"] is None and training["margin"] is None:
        text = (
            f"Whether beta ({training['beta']:g}) is right is unknown: neither KL nor margins "
            "were measured."
        )
    else:
        signs = _measured(report)
        text = f"Nothing measured speaks against beta {training['beta']:g}: {_all(signs)}."
    figures = ("training.beta", *(name for sign in signs for name in sign.figures))
    return [
        Sentence("Beta", text, figures, warning=bool(low or high)),
        *_next(report, bool(low), bool(high)),
    ]


def too_low(report: Report) -> list[Sign]:
    """The policy has gone too far: over its budget, cut off more often, or displaced without an
    improvement to show for it."""
    signs, training = [], report["training"]
    kl, budget = training["kl"], training["kl_budget"]
    if kl is not None and budget is not None and kl["per_token"] > budget:
        text = f"the KL of {kl['per_token']:.3f} is above the budget of {budget:g}"
        signs.append(Sign(text, ("training.kl.per_token", "training.kl_budget")))
    cut_off = report["cut_off"]
    if {"sft", "dpo"} <= cut_off.keys():
        rise = cut_off["dpo"]["mean"] - cut_off["sft"]["mean"]
        if rise > CUT_OFF_RISE:
            text = f"{100 * rise:.0f} points more answers are cut off than SFT's"
            signs.append(Sign(text, ("cut_off.sft.mean", "cut_off.dpo.mean")))
    number = _alarm(report, "displacement")
    if number is not None and report["outcome"]["outcome"] != "improved":
        text = "chosen answers became less likely, too (displacement)"
        signs.append(Sign(text, (f"alarms.{number}.kind",)))
    return signs


def too_high(report: Report) -> list[Sign]:
    """The policy has hardly moved, and nothing shows that it is better or worse."""
    training = report["training"]
    if report["outcome"]["outcome"] != "no_evidence":
        return []
    kl, margin = training["kl"], training["margin"]
    if kl is not None:
        if kl["per_token"] + half_width(kl["se"] or 0.0) < STANDS_STILL:
            text = f"the KL is only {kl['per_token']:.4f} nats per token"
            return [Sign(text, ("training.kl.per_token",))]
    elif margin is not None and margin["last"] / training["beta"] < NO_GAP:
        moved = margin["last"] / training["beta"]
        text = f"the validation gap is {moved:.2f} nats of log-ratio (margin over beta)"
        return [Sign(text, ("training.margin.last",))]
    return []


def _measured(report: Report) -> list[Sign]:
    """What was looked at and speaks for neither side."""
    signs, training = [], report["training"]
    kl, margin = training["kl"], training["margin"]
    if kl is not None:
        text = f"the KL is {kl['per_token']:.3f} nats per token"
        signs.append(Sign(text, ("training.kl.per_token",)))
    elif margin is not None:
        text = f"the validation margin is {margin['last']:.3g}"
        signs.append(Sign(text, ("training.margin.last",)))
    cut_off = report["cut_off"]
    if {"sft", "dpo"} <= cut_off.keys():
        before, after = (100 * cut_off[arm]["mean"] for arm in ("sft", "dpo"))
        text = f"{after:.0f} % of the answers are cut off, of SFT's {before:.0f} %"
        signs.append(Sign(text, ("cut_off.sft.mean", "cut_off.dpo.mean")))
    number = _alarm(report, "displacement")
    if number is not None:
        text = "chosen answers became less likely, too (displacement), but the evaluation improved"
        signs.append(Sign(text, (f"alarms.{number}.kind", "outcome.outcome")))
    return signs


def _next(report: Report, low: bool, high: bool) -> list[Sentence]:
    beta, outcome = report["training"]["beta"], report["outcome"]["outcome"]
    on_beta = ("training.beta",)
    if low:
        text = f"Beta {2 * beta:g}, or half the learning rate, or an earlier step."
        return [_advice(text, on_beta)]
    if high:
        text = f"Beta {beta / 2:g}, or twice the learning rate, or more steps."
        return [_advice(text, on_beta)]
    for kind, text in (
        ("saturation", "Harder pairs, or fewer steps: the current pairs are already separated."),
        ("gap", "More pairs, or fewer epochs: the training pairs are being memorised."),
    ):
        number = _alarm(report, kind)
        if number is not None:
            return [_advice(text, (f"alarms.{number}.kind",))]
    rate: Mapping[str, Any] | None = report["comparison"]["preferred"]
    if outcome == "no_evidence" and rate is not None and rate["detectable"]:
        points = f"{100 * rate['detectable']:.0f}"
        text = (
            f"More held-out prompts: with {rate['n']}, a win rate within {points} points of 50 % "
            "is likely to be missed."
        )
        names = ("comparison.preferred.n", "comparison.preferred.detectable")
        return [_advice(text, names)]
    if outcome == "regressed":
        text = "Read the worst regressions and the label audit before changing beta."
        return [_advice(text, ("outcome.outcome", "regressions.worst"))]
    if outcome == "improved":
        text = "Repeat the training with another seed, to check that the gain holds."
        return [_advice(text, ("outcome.outcome",))]
    return []


def _advice(text: str, figures: tuple[str, ...]) -> Sentence:
    return Sentence("What to try next", text, figures)


def _alarm(report: Report, kind: str) -> int | None:
    """The number of the alarm of this kind."""
    kinds = [alarm["kind"] for alarm in report["alarms"]]
    return kinds.index(kind) if kind in kinds else None


def _all(signs: list[Sign]) -> str:
    return "; ".join(sign.text for sign in signs)
