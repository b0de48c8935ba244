"""What DPO did to the model and what it did not: sentences made from the report's figures by
rules, which docs/evaluation.md states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_dist.reporting.beta import beta_and_next
from dpo_dist.reporting.sentence import Report, Sentence, outcome_of

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
    form, facts = changes["form"], changes["facts"]
    if not form or not facts:
        return sentences
    figures = tuple(change.figure for change in (*form, *facts))
    better = {kind: any(c.way > 0 for c in changes[kind]) for kind in ("form", "facts")}
    if any(c.way < 0 for c in facts):
        text = (
            "Form improved while facts got worse: answers look better than they are."
            if better["form"]
            else "Facts got worse, with no gain in form to offset it."
        )
        return [*sentences, Sentence(topic, text, figures, warning=True)]
    text = {
        (True, True): "Both form and facts improved.",
        (True, False): "Form improved; no gain in facts is shown.",
        (False, True): "Facts improved, form did not.",
        (False, False): "No gain is shown, neither in form nor in facts.",
    }[better["form"], better["facts"]]
    return [*sentences, Sentence(topic, text, figures)]


@dataclass(frozen=True)
class _Change:
    """`way` is above 0 where the metric got better, below 0 where it got worse."""

    text: str
    figure: str
    way: int


def _changes(report: Report, kind: str) -> list[_Change]:
    found = []
    for number, row in enumerate(report["comparison"]["metrics"]):
        delta = row["delta"]
        if row["decoding"] or metric_kind(row["metric"]) != kind:
            continue
        if delta is None or delta["low"] is None:
            continue
        sign = (delta["low"] > 0) - (delta["high"] < 0)
        better = {"higher": 1, "lower": -1, None: 0}[row.get("better", "higher")]
        share = row["unit"] == "share"
        amount = f"{100 * delta['mean']:+.1f} points" if share else f"{delta['mean']:+.2f}"
        shown = amount if sign else f"no difference shown ({amount})"
        name = f"comparison.metrics.{number}.delta"
        found.append(_Change(f"{row['label']} {shown}", name, sign * better))
    return found


def length(report: Report) -> list[Sentence]:
    """Whether answers grew, and what is left of the win rate at equal lengths."""
    topic, sentences = "Length", []
    longer = report["answers"]["longer"]
    if longer is not None:
        before = report["answers"]["arms"]["sft"]["characters"]
        interval = _interval(longer, ".0f")
        change = "show no difference in length from SFT's"
        if longer["low"] is not None and not longer["low"] <= 0 <= longer["high"]:
            share = f" ({100 * longer['mean'] / before:+.0f} %)" if before else ""
            change = f"are {'longer' if longer['mean'] > 0 else 'shorter'} than SFT's{share}"
        text = f"SFT+DPO's answers {change}: {longer['mean']:+.0f} characters{interval}."
        names = ("answers.longer", "answers.arms.sft.characters")
        sentences.append(Sentence(topic, text, names))
    rate = report["comparison"]["preferred"]
    equal = (rate or {}).get("length_controlled")
    if not equal or equal["mean"] is None:
        return sentences
    raw, controlled = rate["mean"], equal["mean"]
    text = f"SFT+DPO's win rate is {_percent(raw)}, and {_percent(controlled)} at equal lengths"
    far = abs(raw - controlled) > LENGTH_MATTERS
    text += (
        ": length accounts for more than 10 points of it, so go by the second figure."
        if far
        else ": length explains little of it."
    )
    names = ("comparison.preferred.mean", "comparison.preferred.length_controlled.mean")
    return [*sentences, Sentence(topic, text, names, warning=far)]


def gap_and_gain(report: Report) -> list[Sentence]:
    """The reward gap on validation pairs beside what the evaluation found."""
    margin = (report["training"] or {}).get("margin")
    outcome = outcome_of(report)
    if margin is None or not outcome:
        return []
    grew = margin["last"] > margin["first"]
    gap = f"from {margin['first']:z.3f} to {margin['last']:z.3f}"
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
    error = "" if kl["per_token_se"] is None else f" ± {2 * kl['per_token_se']:.3f} (2 SE)"
    text = (
        f"KL from the reference, on the policy's own answers: {kl['per_token']:.3f}{error} nats "
        "per token"
    )
    names: tuple[str, ...] = ("training.kl.per_token",)
    if error:
        names += ("training.kl.per_token_se",)
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
        parts.append(f"{fall['label']} fell on {fall['prompts']}")
        names.append(f"regressions.fell.{number}.prompts")
    if not parts:
        return []
    text = "; ".join(parts) + "."
    if regressions["worst"]:
        worst = ", ".join(row["id"] for row in regressions["worst"][:3])
        text += f" The worst: {worst} (shown below)."
        names.append("regressions.worst")
    return [Sentence("Where it lost", text, tuple(names))]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(estimate: Mapping[str, Any], form: str) -> str:
    if estimate["low"] is None:
        return ""
    return f" [{estimate['low']:+{form}}, {estimate['high']:+{form}}]"
