"""Sentences about beta: whether it looks too low or too high, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_dist.intervals import half_width
from dpo_dist.reporting.figures import TrainingFigures
from dpo_dist.reporting.report import RunFigures, Sentence

CUT_OFF_RISE = 0.05  # SFT+DPO's share of cut-off answers minus SFT's
LITTLE_KL = 0.01  # nats per token; the KL is small if its whole interval lies below
LITTLE_GAP = 1.0  # nats; the margin over beta, if no KL was measured
DISPLACED = "the chosen answers became less likely, too (displacement)"
CUT_OFF = ("cut_off.sft.mean", "cut_off.dpo.mean")


@dataclass(frozen=True)
class Signal:
    """A measured signal in words, and the places of its figures in report.json."""

    text: str
    figures: tuple[str, ...]


def beta_and_advice(report: RunFigures) -> list[Sentence]:
    """A sentence on whether beta looks right, then what to try next. Empty without a training."""
    training = report.training
    if training is None:
        return []
    beta = training.beta
    low = too_low(report, training)
    high = [] if low else too_high(report, training)
    signals = low or high or _measured(report, training)
    if low:
        text = f"Beta ({beta:g}) looks too low, or the training too long"
    elif high:
        text = f"Beta ({beta:g}) looks too high, or the training too short"
    elif training.kl is None and training.margin is None:
        signals = [Signal("neither KL nor margins were measured", ())]
        text = f"Whether beta ({beta:g}) is right is unknown"
    else:
        text = f"No measured signal suggests that beta {beta:g} is wrong"
    text = f"{text}: {'; '.join(signal.text for signal in signals)}."
    figures = ("training.beta", *(name for signal in signals for name in signal.figures))
    sentences = [Sentence("Beta", text, figures, warning=bool(low or high))]
    if advice := _advice(report, beta, bool(low), bool(high)):
        sentences.append(Sentence("What to try next", advice.text, advice.figures))
    return sentences


def too_low(report: RunFigures, training: TrainingFigures) -> list[Signal]:
    """Signals that the policy has moved too far from the reference: the KL exceeds its budget, more
    answers are cut off, or displacement without an improvement."""
    signals: list[Signal] = []
    kl, budget = training.kl, training.kl_budget
    if kl is not None and budget is not None and kl.per_token > budget:
        text = f"the KL of {kl.per_token:.3f} is above the budget of {budget:g}"
        signals.append(Signal(text, ("training.kl.per_token", "training.kl_budget")))
    sft, dpo = _cut_off(report) or (0.0, 0.0)
    if dpo - sft > CUT_OFF_RISE:
        text = f"the share of cut-off answers is {100 * (dpo - sft):.0f} points higher than SFT's"
        signals.append(Signal(text, CUT_OFF))
    number = _alarm(report, "displacement")
    if number is not None and report.outcome.outcome != "improved":
        signals.append(Signal(DISPLACED, (f"alarms.{number}.kind",)))
    return signals


def too_high(report: RunFigures, training: TrainingFigures) -> list[Signal]:
    """Signals that the policy has hardly moved, if the evaluation shows no change."""
    if report.outcome.outcome != "no_evidence":
        return []
    kl, margin = training.kl, training.margin
    if kl is not None:
        if kl.per_token + half_width(kl.se or 0.0) < LITTLE_KL:
            text = f"the KL is only {kl.per_token:.4f} nats per token"
            return [Signal(text, ("training.kl.per_token",))]
    elif margin is not None and margin.last / training.beta < LITTLE_GAP:
        gap = margin.last / training.beta
        text = f"the validation gap is {gap:.2f} nats of log-ratio (margin over beta)"
        return [Signal(text, ("training.margin.last",))]
    return []


def _measured(report: RunFigures, training: TrainingFigures) -> list[Signal]:
    """The measured signals that show neither."""
    signals: list[Signal] = []
    kl, margin = training.kl, training.margin
    if kl is not None:
        text = f"the KL is {kl.per_token:.3f} nats per token"
        signals.append(Signal(text, ("training.kl.per_token",)))
    elif margin is not None:
        text = f"the validation margin is {margin.last:.3g}"
        signals.append(Signal(text, ("training.margin.last",)))
    if shares := _cut_off(report):
        sft, dpo = (100 * share for share in shares)
        signals.append(
            Signal(f"{dpo:.0f} % of the answers are cut off (SFT: {sft:.0f} %)", CUT_OFF)
        )
    number = _alarm(report, "displacement")
    if number is not None:
        text = f"{DISPLACED}, but the evaluation improved"
        signals.append(Signal(text, (f"alarms.{number}.kind", "outcome.outcome")))
    return signals


def _advice(report: RunFigures, beta: float, low: bool, high: bool) -> Signal | None:
    if low:
        text = f"Beta {2 * beta:g}, or half the learning rate, or an earlier step."
        return Signal(text, ("training.beta",))
    if high:
        text = f"Beta {beta / 2:g}, or twice the learning rate, or more steps."
        return Signal(text, ("training.beta",))
    for kind, text in (
        ("saturation", "Harder pairs, or fewer steps: the current pairs are already separated."),
        ("gap", "More pairs, or fewer epochs: the model memorises the training pairs."),
    ):
        number = _alarm(report, kind)
        if number is not None:
            return Signal(text, (f"alarms.{number}.kind",))
    outcome, rate = report.outcome.outcome, report.comparison.preferred
    if outcome == "no_evidence" and rate is not None and rate.detectable:
        text = (
            f"More held-out prompts: with {rate.n}, a win rate within "
            f"{100 * rate.detectable:.0f} points of 50 % is likely to remain undetected."
        )
        return Signal(text, ("comparison.preferred.n", "comparison.preferred.detectable"))
    if outcome == "regressed":
        text = "Read the worst regressions and the label audit before changing beta."
        return Signal(text, ("outcome.outcome", "regressions.worst"))
    if outcome == "improved":
        text = "Repeat the training with another seed, to check that the gain holds."
        return Signal(text, ("outcome.outcome",))
    return None


def _cut_off(report: RunFigures) -> tuple[float, float] | None:
    """The shares of cut-off answers of SFT and of SFT+DPO."""
    sft, dpo = (report.cut_off.get(arm) for arm in ("sft", "dpo"))
    if sft is None or dpo is None or sft.mean is None or dpo.mean is None:
        return None
    return sft.mean, dpo.mean


def _alarm(report: RunFigures, kind: str) -> int | None:
    """The index of the first alarm of this kind."""
    kinds = [alarm.kind for alarm in report.alarms]
    return kinds.index(kind) if kind in kinds else None
