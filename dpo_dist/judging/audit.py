"""What a set of labels says about itself: shares that show a judge's or a sampler's bias.

None of them proves that a label is right. Each has a range in which nothing is wrong with it and
a remedy for what lies outside; the whole interval has to lie outside before anyone is warned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpo_dist.judging.ballots import Vote
from dpo_dist.judging.panel import Contest
from dpo_dist.records import Verdict

SIMILAR = 1.25  # answers whose lengths differ by no more than this factor are of a length


@dataclass(frozen=True)
class Share:
    """`hits` of `n`; outside `healthy` (low, high) the `remedy` applies."""

    name: str
    label: str
    hits: int
    n: int
    healthy: tuple[float, float]
    remedy: str


def audit(
    contests: Sequence[Contest], verdicts: Sequence[Verdict], votes: Iterable[Vote]
) -> list[Share]:
    """The shares of one judged set. `contests` and `verdicts` belong together in order; in every
    contest `a` is the first slot. Lengths are in characters."""
    decided = [
        (contest, verdict.preferred == contest.a)
        for contest, verdict in zip(contests, verdicts, strict=True)
        if verdict.outcome == "preferred"
    ]
    return [
        _longer(decided),
        *_first_slot_by_length(decided),
        *_positions(list(votes)),
    ]


def length_band(contest: Contest) -> str:
    """The first slot's answer is `shorter` than the other, `similar` or `longer`."""
    ratio = len(contest.a_text) / len(contest.b_text)
    return "shorter" if ratio < 1 / SIMILAR else "longer" if ratio > SIMILAR else "similar"


def _longer(decided: Sequence[tuple[Contest, bool]]) -> Share:
    unequal = [
        (len(contest.a_text) > len(contest.b_text)) == a_is_chosen
        for contest, a_is_chosen in decided
        if len(contest.a_text) != len(contest.b_text)
    ]
    return _share(
        "chosen_is_longer",
        "The chosen answer is the longer one",
        unequal,
        (0.25, 0.75),
        "the labels teach length: say in the rubric that length is no merit, or drop pairs of "
        "very different lengths",
    )


def _first_slot_by_length(decided: Sequence[tuple[Contest, bool]]) -> list[Share]:
    """The slots differ by temperature, and temperature by length: at equal lengths what is left
    is the temperature itself."""
    bands: dict[str, list[bool]] = {"shorter": [], "similar": [], "longer": []}
    for contest, a_is_chosen in decided:
        bands[length_band(contest)].append(a_is_chosen)
    labels = {
        "shorter": "The first slot is chosen where its answer is shorter",
        "similar": "The first slot is chosen where the lengths are similar",
        "longer": "The first slot is chosen where its answer is longer",
    }
    return [
        _share(
            f"first_slot_where_{band}",
            labels[band],
            chosen,
            (0.1, 0.9) if band == "similar" else (0.0, 1.0),
            "the label is nearly the slot: DPO would learn a temperature, not a preference. Bring "
            "the slots' temperatures closer together",
        )
        for band, chosen in bands.items()
    ]


def _positions(votes: Sequence[Vote]) -> list[Share]:
    """What the judge makes of the order in which it is shown the answers."""
    compared = [vote for vote in votes if vote.compares]
    first = [b.outcome == "first" for b in compared if b.repeat == 0 and b.outcome != "tie"]
    orders: dict[str, list[Vote]] = defaultdict(list)
    repeats: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for ballot in compared:
        if ballot.repeat == 0:
            orders[ballot.prompt_id].append(ballot)
        repeats[ballot.prompt_id, ballot.first].append(ballot)
    agree, stable = (
        [
            len({ballot.preferred for ballot in group}) == 1
            for group in groups.values()
            if len(group) > 1
        ]
        for groups in (orders, repeats)
    )
    remedy = "the judge goes by the order: take a stronger judge, or make the rubric more definite"
    return [
        _share(
            "first_position", "The answer shown first is preferred", first, (0.35, 0.65), remedy
        ),
        _share("swap_consistency", "Both orders get the same verdict", agree, (0.6, 1.0), remedy),
        _share(
            "repeat_stability",
            "Asked again, the judge says the same",
            stable,
            (0.8, 1.0),
            "the judge decides by chance: take a stronger judge, or make the rubric more definite",
        ),
    ]


def _share(
    name: str, label: str, values: Sequence[bool], healthy: tuple[float, float], remedy: str
) -> Share:
    return Share(name, label, sum(values), len(values), healthy, remedy)
