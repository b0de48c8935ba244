"""What DPO did to the model and what it did not: sentences made from the report's figures by
rules, which docs/evaluation.md states."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_dist.intervals import half_width
from dpo_dist.reporting.beta import beta_and_next
from dpo_dist.reporting.sentence import Report, Sentence

# By a metric's type: what can be met without knowing the answer, and what cannot.
FORM = frozenset(
    {"json_schema", "regex", "stop_rate", "length", "distinct_n", "repetition", "refusal_rate"}
)
FACTS = frozenset({"label_match", "exact_match", "rouge_l", "faithful_quotes"})
LENGTH_MATTERS = 0.10  # between the raw win rate and the one at equal lengths


def reflect(report: Report) -> list[Sentence]:
    """All that can be said of a run, in order; where a figure is missing, less is said."""
    return [
        *form_and_facts(report),
        *length(report),
        *gap_and_gain(report),
        *kl_spent(report),
        *where_it_lost(report),
        *beta_and_next(report),
    ]


def metric_kind(metric: str) -> str:
    """ "form", "facts" or "other" by the metric's type; a user's function, a judge's score and a
    benchmark may be either."""
    kind = re.match(r"[a-z_]+", metric)
    name = kind.group() if kind else ""
    return "form" if name in FORM else "facts" if name in FACTS else "other"


def form_and_facts(report: Report) -> list[Sentence]:
    """What rose and what fell, format apart from facts."""
    topic = "Form and facts"
    changes = {kind: _changes(report, kind) for kind in ("form", "facts", "other")}
    titles = {
        "form": "Form and style",
        "facts": "Facts, against a reference or the prompt",
        "other": "Unclassified (own functions, judge scores, benchmarks)",
    }
    sentences = [
        Sentence(
            topic,
            f"{titles[kind]}: {'; '.join(change.text for change in found)}.",
            tuple(change.figure for change in found),
        )
        for kind, found in changes.items()
        if found
    ]
    form, facts = (
        [change for change in changes[kind] if change.directed] for kind in ("form", "facts")
    )
    if not form or not facts:
        return sentences
    figures = tuple(change.figure for change in (*form, *facts))
    text = f"Form: {_tally(form)}. Facts: {_tally(facts)}."
    if _any(form, 1) and _any(facts, -1):
        text += " Answers look better than they are."
    elif _any(form, 1) and not _any(facts, 1):
        text += " No gain in facts is shown."
    worse = _any((*form, *facts), -1)
    return [*sentences, Sentence(topic, text, figures, warning=worse)]


@dataclass(frozen=True)
class _Change:
    """`way` is above 0 where the metric got better, below 0 where it got worse. Of a metric that
    is not `directed` neither way is better."""

    text: str
    figure: str
    way: int
    directed: bool


def _any(changes: Iterable[_Change], way: int) -> bool:
    return any(change.way == way for change in changes)


def _tally(changes: Sequence[_Change]) -> str:
    """What became of one kind: `better in 2 of 4 metrics, worse in 1`."""
    metrics = f"{len(changes)} metric{'' if len(changes) == 1 else 's'}"
    better, worse = (sum(change.way == way for change in changes) for way in (1, -1))
    if better:
        return f"better in {better} of {metrics}" + (f", worse in {worse}" if worse else "")
    return f"worse in {worse} of {metrics}" if worse else f"no change shown in {metrics}"


def _changes(report: Report, kind: str) -> list[_Change]:
    found = []
    for number, row in enumerate(report["comparison"]["metrics"]):
        delta = row["delta"]
        if row["decoding"] or metric_kind(row["metric"]) != kind:
            continue
        if delta is None or delta["low"] is None:
            continue
        sign = (delta["low"] > 0) - (delta["high"] < 0)
        better = {"higher": 1, "lower": -1, None: 0}[row["better"]]
        share = row["unit"] == "share"
        amount = f"{100 * delta['mean']:+.1f} points" if share else f"{delta['mean']:+.2f}"
        shown = amount if sign else f"{amount} (no difference is shown)"
        name = f"comparison.metrics.{number}.delta"
        text = f"{row['label']} {shown}"
        found.append(_Change(text, name, sign * better, directed=bool(better)))
    return found


def length(report: Report) -> list[Sentence]:
    """Whether answers grew, and what is left of the win rate at equal lengths."""
    return [*_growth(report), *_at_equal_lengths(report)]


def _growth(report: Report) -> Iterator[Sentence]:
    lengths = report["comparison"]["length"]
    longer = lengths and lengths["delta"]
    if not longer:
        return
    before = lengths["arms"]["sft"]["mean"]
    interval = _interval(longer, ".0f")
    change = "are not shown to differ in length from SFT's"
    if longer["low"] is not None and not longer["low"] <= 0 <= longer["high"]:
        share = f" ({100 * longer['mean'] / before:+.0f} %)" if before else ""
        change = f"are {'longer' if longer['mean'] > 0 else 'shorter'} than SFT's{share}"
    text = f"SFT+DPO's answers {change}: {longer['mean']:+.0f} {lengths['unit']}{interval}."
    yield Sentence("Length", text, ("comparison.length.delta", "comparison.length.arms.sft.mean"))


def _at_equal_lengths(report: Report) -> Iterator[Sentence]:
    rate = report["comparison"]["preferred"]
    equal = rate and rate["length_controlled"]
    if not equal or equal["mean"] is None:
        return
    by_length = rate["mean"] - equal["mean"]
    if lost := _above_chance(rate) and not _above_chance(equal):
        meaning = "of the gain, none is shown at equal lengths"
    elif by_length > LENGTH_MATTERS:
        meaning = f"{100 * by_length:.0f} points of it go with length"
    elif by_length < -LENGTH_MATTERS:
        meaning = "its length speaks against SFT+DPO, not for it"
    else:
        meaning = "length makes little difference"
    text = f"SFT+DPO's win rate is {_percent(rate['mean'])}, and {_percent(equal['mean'])} at equal"
    figures = ("comparison.preferred", "comparison.preferred.length_controlled")
    warning = lost or by_length > LENGTH_MATTERS
    yield Sentence("Length", f"{text} lengths: {meaning}.", figures, warning=warning)


def _above_chance(rate: Mapping[str, Any]) -> bool:
    return rate["low"] is not None and rate["low"] > 0.5


def gap_and_gain(report: Report) -> list[Sentence]:
    """The reward gap on validation pairs beside what the evaluation found."""
    margin = (report["training"] or {}).get("margin")
    outcome = report["outcome"]["outcome"]
    if margin is None:
        return []
    grew = margin["last"] > margin["first"]
    gap = f"from {margin['first']:z.3g} to {margin['last']:z.3g}"
    names: tuple[str, ...] = ("training.margin.first", "training.margin.last", "outcome.outcome")
    if grew and outcome == "improved":
        text = f"The reward gap on validation pairs grew {gap}, and the evaluation agrees."
    elif grew:
        found = "got worse" if outcome == "regressed" else "shows no gain"
        text = (
            f"The reward gap on validation pairs grew {gap}, but the evaluation {found}: a gap is "
            "necessary, not sufficient."
        )
    elif outcome == "improved":
        text = (
            f"The evaluation improved without a growing reward gap on validation pairs ({gap}): "
            "one of the two may be wrong, or the pairs teach something else."
        )
    else:
        text = (
            f"The reward gap on validation pairs did not grow ({gap}): the pairs were not learned."
        )
    return [Sentence("Reward gap", text, names, warning=grew != (outcome == "improved"))]


def kl_spent(report: Report) -> list[Sentence]:
    """How far the policy is from the reference on its own answers, and whether that was allowed."""
    training = report["training"] or {}
    kl = training.get("kl")
    if kl is None:
        return []
    error = "" if kl["se"] is None else f" ± {half_width(kl['se']):.3f} (95 % interval)"
    found = f"{kl['per_token']:.3f}{error} nats per token"
    text = f"KL from the reference, on the policy's own answers: {found}"
    names: tuple[str, ...] = ("training.kl.per_token",)
    if error:
        names += ("training.kl.se",)
    budget = training["kl_budget"]
    if budget is None:
        return [Sentence("KL", f"{text}; no budget was set (train.kl.budget).", names)]
    over = kl["per_token"] > budget
    place = "above" if over else "within"
    text = f"{text}, {place} the budget of {budget:g}."
    return [Sentence("KL", text, (*names, "training.kl_budget"), warning=over)]


def where_it_lost(report: Report) -> list[Sentence]:
    """How many prompts got worse, and which of them most."""
    regressions = report["regressions"]
    parts, names = [], []
    rate = report["comparison"]["preferred"]
    if rate is not None and rate["n"]:
        parts.append(f"SFT was preferred on {rate['losses']} of {rate['n']} prompts")
        names += ["comparison.preferred.losses", "comparison.preferred.n"]
    for number, fall in enumerate(regressions["fell"]):
        parts.append(f"{fall['label']} got worse on {fall['prompts']}")
        names.append(f"regressions.fell.{number}.prompts")
    if not parts:
        return []
    text = "; ".join(parts) + "."
    if regressions["worst"]:
        worst = ", ".join(row["id"] for row in regressions["worst"][:3])
        text += f" Worst of all: {worst}."
        names.append("regressions.worst")
    return [Sentence("Where it lost", text, tuple(names))]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(estimate: Mapping[str, Any], form: str) -> str:
    if estimate["low"] is None:
        return ""
    return f" [{estimate['low']:+{form}}, {estimate['high']:+{form}}]"
