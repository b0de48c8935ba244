"""Sentences on what DPO changed, generated from the figures of the report by the rules in
docs/evaluation.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpo_dist.intervals import Estimate, half_width
from dpo_dist.reporting.beta import beta_and_advice
from dpo_dist.reporting.report import RunFigures, Sentence

# Types of metrics that an answer can satisfy without being right, and types that require it.
FORM = frozenset(
    {"json_schema", "regex", "stop_rate", "length", "distinct_n", "repetition", "refusal_rate"}
)
FACTS = frozenset({"label_match", "exact_match", "rouge_l", "faithful_quotes"})
TITLES = {
    "form": "Form and style",
    "facts": "Facts, against a reference or the prompt",
    "other": "Unclassified (own functions, judge scores, benchmarks)",
}
LENGTH_MATTERS = 0.10  # difference between the win rate and the one at equal lengths


def reflect(report: RunFigures) -> list[Sentence]:
    """All sentences on a run, in order. A sentence is left out if its figures are missing."""
    return [
        *form_and_facts(report),
        *length_change(report),
        *equal_lengths(report),
        *reward_gap(report),
        *kl_from_reference(report),
        *regressions(report),
        *beta_and_advice(report),
    ]


def metric_kind(metric: str) -> str:
    """ "form" or "facts" by the metric's type; "other" for functions, judge scores and benchmarks,
    which may be either."""
    name = re.split(r"[^a-z_]", metric)[0]
    return "form" if name in FORM else "facts" if name in FACTS else "other"


def form_and_facts(report: RunFigures) -> list[Sentence]:
    """Which metrics changed, and how form and facts compare."""
    topic = "Form and facts"
    changes = {kind: _changes(report, kind) for kind in TITLES}
    sentences = [
        Sentence(
            topic,
            f"{TITLES[kind]}: {'; '.join(change.text for change in found)}.",
            tuple(change.figure for change in found),
        )
        for kind, found in changes.items()
        if found
    ]
    form, facts = (
        [change for change in changes[kind] if change.way is not None] for kind in ("form", "facts")
    )
    if not form or not facts:
        return sentences
    text = f"Form: {_tally(form)}. Facts: {_tally(facts)}."
    form_ways, facts_ways = ({change.way for change in changes} for changes in (form, facts))
    if 1 in form_ways and -1 in facts_ways:
        text += " Answers look better than they are."
    elif 1 in form_ways and 1 not in facts_ways:
        text += " No gain in facts is shown."
    figures = tuple(change.figure for change in (*form, *facts))
    return [*sentences, Sentence(topic, text, figures, warning=-1 in form_ways | facts_ways)]


@dataclass(frozen=True)
class _Change:
    """The change of a metric from SFT to SFT+DPO. `way` is 1 for better, -1 for worse and 0 if no
    change is shown; None for a metric without a better direction."""

    text: str
    figure: str
    way: int | None


def _tally(changes: Sequence[_Change]) -> str:
    """A summary of the changes of one kind: `better in 2 of 4 metrics, worse in 1`."""
    metrics = f"{len(changes)} metric{'' if len(changes) == 1 else 's'}"
    better, worse = (sum(change.way == way for change in changes) for way in (1, -1))
    if better:
        return f"better in {better} of {metrics}" + (f", worse in {worse}" if worse else "")
    return f"worse in {worse} of {metrics}" if worse else f"no change shown in {metrics}"


def _changes(report: RunFigures, kind: str) -> list[_Change]:
    found = []
    for number, row in enumerate(report.comparison.metrics):
        delta = row.delta
        if row.decoding or metric_kind(row.metric) != kind:
            continue
        if delta is None or delta.mean is None or delta.low is None or delta.high is None:
            continue
        sign = (delta.low > 0) - (delta.high < 0)
        share = row.unit == "share"
        text = f"{row.label} " + (
            f"{100 * delta.mean:+.1f} points" if share else f"{delta.mean:+.2f}"
        )
        if not sign:
            text += " (no difference is shown)"
        figure = f"comparison.metrics.{number}.delta"
        way = {"higher": sign, "lower": -sign, None: None}[row.better]
        found.append(_Change(text, figure, way))
    return found


def length_change(report: RunFigures) -> Iterator[Sentence]:
    """Whether the answers became longer or shorter."""
    lengths = report.comparison.length
    delta = lengths.delta if lengths is not None else None
    if lengths is None or delta is None or delta.mean is None:
        return
    sft = lengths.arms["sft"].mean
    change, interval = "show no difference in length from SFT's", ""
    if delta.low is not None and delta.high is not None:
        interval = f" [{delta.low:+.0f}, {delta.high:+.0f}]"
        if not delta.low <= 0 <= delta.high:
            share = f" ({100 * delta.mean / sft:+.0f} %)" if sft else ""
            change = f"are {'longer' if delta.mean > 0 else 'shorter'} than SFT's{share}"
    text = f"SFT+DPO's answers {change}: {delta.mean:+.0f} {lengths.unit}{interval}."
    yield Sentence("Length", text, ("comparison.length.delta", "comparison.length.arms.sft.mean"))


def equal_lengths(report: RunFigures) -> Iterator[Sentence]:
    """How much of the win rate remains at equal lengths."""
    rate = report.comparison.preferred
    equal = rate and rate.length_controlled
    if rate is None or rate.mean is None or equal is None or equal.mean is None:
        return
    by_length = rate.mean - equal.mean
    if lost := _above_chance(rate) and not _above_chance(equal):
        meaning = "no gain is shown at equal lengths"
    elif by_length > LENGTH_MATTERS:
        meaning = f"{100 * by_length:.0f} points of it are due to length"
    elif by_length < -LENGTH_MATTERS:
        meaning = "length lowers SFT+DPO's win rate"
    else:
        meaning = "length makes little difference"
    text = (
        f"SFT+DPO's win rate is {100 * rate.mean:.1f} %, and {100 * equal.mean:.1f} % at equal "
        f"lengths: {meaning}."
    )
    figures = ("comparison.preferred", "comparison.preferred.length_controlled")
    yield Sentence("Length", text, figures, warning=lost or by_length > LENGTH_MATTERS)


def _above_chance(rate: Estimate) -> bool:
    return rate.low is not None and rate.low > 0.5


def reward_gap(report: RunFigures) -> Iterator[Sentence]:
    """The change of the reward gap on validation pairs, compared with the outcome."""
    margin = report.training.margin if report.training is not None else None
    if margin is None:
        return
    outcome = report.outcome.outcome
    grew, improved = margin.last > margin.first, outcome == "improved"
    gap = f"from {margin.first:z.3g} to {margin.last:z.3g}"
    if grew and improved:
        text = f"The reward gap on validation pairs grew {gap}, and the evaluation agrees."
    elif grew:
        found = "got worse" if outcome == "regressed" else "shows no gain"
        text = (
            f"The reward gap on validation pairs grew {gap}, but the evaluation {found}: a larger "
            "gap is necessary, but not sufficient."
        )
    elif improved:
        text = (
            f"The evaluation improved without a growing reward gap on validation pairs ({gap}): "
            "one of the two may be wrong, or the pairs teach something else."
        )
    else:
        text = (
            f"The reward gap on validation pairs did not grow ({gap}): the pairs were not learned."
        )
    figures = ("training.margin.first", "training.margin.last", "outcome.outcome")
    yield Sentence("Reward gap", text, figures, warning=grew != improved)


def kl_from_reference(report: RunFigures) -> Iterator[Sentence]:
    """The KL from the reference on the policy's own answers, compared with its budget."""
    training = report.training
    kl = training.kl if training is not None else None
    if training is None or kl is None:
        return
    text = f"KL from the reference, on the policy's own answers: {kl.per_token:.3f}"
    figures = ["training.kl.per_token"]
    if kl.se is not None:
        text += f" ± {half_width(kl.se):.3f} (95 % interval)"
        figures.append("training.kl.se")
    budget = training.kl_budget
    if budget is None:
        text += " nats per token; no budget was set (train.kl.budget)."
    else:
        place = "above" if kl.per_token > budget else "within"
        text += f" nats per token, {place} the budget of {budget:g}."
        figures.append("training.kl_budget")
    over = budget is not None and kl.per_token > budget
    yield Sentence("KL", text, tuple(figures), warning=over)


def regressions(report: RunFigures) -> Iterator[Sentence]:
    """On how many prompts SFT+DPO is worse than SFT, and the worst ones."""
    parts, figures = [], []
    rate = report.comparison.preferred
    if rate is not None and rate.n:
        parts.append(f"SFT was preferred on {rate.losses} of {rate.n} prompts")
        figures += ["comparison.preferred.losses", "comparison.preferred.n"]
    for number, fall in enumerate(report.regressions.fell):
        parts.append(f"{fall.label} got worse on {fall.prompts}")
        figures.append(f"regressions.fell.{number}.prompts")
    if not parts:
        return
    text = "; ".join(parts) + "."
    if worst := report.regressions.worst:
        text += f" Worst prompts: {', '.join(row.id for row in worst[:3])}."
        figures.append("regressions.worst")
    yield Sentence("Regressions", text, tuple(figures))
