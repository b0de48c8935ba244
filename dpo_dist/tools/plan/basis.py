"""The figures that a forecast stands on, each with where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

from dpo_dist.estimates.scaling import LINK_EFFICIENCY
from dpo_dist.estimates.throughput import DECODING_UTILIZATION, PREFILL_UTILIZATION
from dpo_dist.tools.plan.figure import Figure
from dpo_dist.tools.plan.hours import START_SECONDS
from dpo_dist.tools.plan.judging import SECONDS_A_REQUEST
from dpo_dist.tools.plan.subject import Subject


def basis(subject: Subject) -> Iterator[tuple[str, Figure]]:
    """By name, in the order in which they are shown."""
    run = str(subject.rates.run)
    texts = {
        "demonstrations": subject.demonstrations,
        "prompts": subject.prompts,
        "held-out prompts": subject.held_out,
    }
    for name, found in texts.items():
        if found is not None:
            yield name, found.count
            yield f"tokens of a row of {name}", Figure(found.tokens, found.source, found.how)
    if subject.pairs is not None:
        pairs = subject.pairs
        yield "pairs to train on", pairs.count
        note = f"{pairs.how}; the longest {pairs.longest.computed:,.0f}"
        yield "tokens of a pair, its prompt once", Figure(pairs.mean.computed, pairs.source, note)
    if subject.prompts is not None:
        yield "tokens of a candidate", subject.candidate
    if subject.held_out is not None:
        yield "tokens of an answer", subject.answer
    measured = subject.rates.training is not None
    yield (
        "share of the GPU's peak in training",
        Figure(subject.utilization, "measured" if measured else "assumed", run if measured else ""),
    )
    if subject.rates.sampling is None:
        yield "share of the memory bandwidth in decoding", Figure(DECODING_UTILIZATION, "assumed")
        yield "share of the peak in reading prompts", Figure(PREFILL_UTILIZATION, "assumed")
    yield "share of the links' bandwidth", Figure(LINK_EFFICIENCY, "assumed")
    yield "seconds to start a phase", Figure(START_SECONDS, "assumed")
    seconds = subject.rates.seconds_a_request
    known = Figure(seconds, "measured", run) if seconds else Figure(SECONDS_A_REQUEST, "assumed")
    yield "seconds a judge's request takes online", known
