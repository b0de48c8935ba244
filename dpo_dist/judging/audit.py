"""The label audit: shares that show a bias of the judge or of the sampling.

No share proves that a label is right. Each share has a healthy range and a remedy. The report warns
only if the whole interval of a share lies outside its healthy range.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from dpo_dist.intervals import Estimate, wilson
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import BallotSummary
from dpo_dist.storage.records import ComparisonId, Verdict

_SLOT_RANGE = (0.1, 0.9)
_SLOT_REMEDY = (
    "the label almost depends on the slot alone: DPO would learn a temperature, not a preference. "
    "Bring the slots' temperatures closer together"
)
SIMILAR = 1.25  # two lengths are similar if they differ by at most this factor

_Values = Sequence[tuple[str, bool]]  # (prompt id, whether the value counts as a hit)


@dataclass(frozen=True)
class Share:
    """`hits` of `n` values; the `remedy` applies outside the range `healthy` (low, high). Values of
    one prompt are not independent: the effective sample size is n / `design_effect` (Kish 1965).
    The design effect is 1 if every prompt has one value."""

    name: str
    label: str
    hits: int
    n: int
    design_effect: float
    healthy: tuple[float, float]
    remedy: str

    @classmethod
    def of(
        cls, name: str, label: str, values: _Values, healthy: tuple[float, float], remedy: str
    ) -> Share:
        hits = sum(hit for _, hit in values)
        return cls(name, label, hits, len(values), _design_effect(values), healthy, remedy)

    def measured(self) -> AuditShare:
        """The share of all values, with the interval of the effective sample size."""
        effect = self.design_effect
        interval = wilson(round(self.hits / effect), round(self.n / effect))
        low, high = interval.low, interval.high
        suspicious = (high is not None and high < self.healthy[0]) or (
            low is not None and low > self.healthy[1]
        )
        mean = self.hits / self.n if self.n else None
        remedy = self.remedy if suspicious else ""
        return AuditShare(self.name, self.label, self.n, mean, low, high, remedy)


@dataclass(frozen=True)
class _Named:
    name: str
    label: str


@dataclass(frozen=True)
class AuditShare(Estimate, _Named):
    """A share in the manifest and the report; `remedy` is empty if the interval overlaps the
    healthy range."""

    remedy: str = ""


def audit(
    comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], ballots: Iterable[BallotSummary]
) -> list[Share]:
    """The shares of all comparisons, each of which has the verdict at the same index. With two
    slots, every comparison names slot 0 first. Lengths are in characters."""
    decided = [
        (comparison, verdict.preferred == comparison.first)
        for comparison, verdict in zip(comparisons, verdicts, strict=True)
        if verdict.outcome == "preferred"
    ]
    if any(comparison.number for comparison in comparisons):
        slots = [*_slots_at_similar_lengths(decided), _transitive(decided)]
    else:
        slots = _first_slot_by_length(decided)
    return [_longer(decided), *slots, *_positions(list(ballots))]


def length_band(comparison: Comparison) -> str:
    """The length of the first answer compared to the second: "shorter", "similar" or "longer"."""
    ratio = len(comparison.first_text) / len(comparison.second_text)
    return "shorter" if ratio < 1 / SIMILAR else "longer" if ratio > SIMILAR else "similar"


def _longer(decided: Sequence[tuple[Comparison, bool]]) -> Share:
    unequal = [
        (comparison.prompt.id, (first > second) == first_is_chosen)
        for comparison, first_is_chosen in decided
        if (first := len(comparison.first_text)) != (second := len(comparison.second_text))
    ]
    return Share.of(
        "chosen_is_longer",
        "The chosen answer is the longer one",
        unequal,
        (0.25, 0.75),
        "the labels reward or penalise length: state in the rubric that length is not a merit, or "
        "drop pairs of very different lengths",
    )


def _first_slot_by_length(decided: Sequence[tuple[Comparison, bool]]) -> list[Share]:
    """How often the first slot is chosen, by length band. The slots' temperatures affect the
    lengths of their answers. At similar lengths, only the direct effect of the temperature
    remains."""
    bands: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for comparison, first_is_chosen in decided:
        bands[length_band(comparison)].append((comparison.prompt.id, first_is_chosen))
    return [
        Share.of(
            f"first_slot_where_{band}",
            f"The first slot is chosen when {condition}",
            bands[band],
            healthy,
            _SLOT_REMEDY,
        )
        for band, condition, healthy in (
            ("shorter", "its answer is shorter", (0.0, 1.0)),
            ("similar", "the lengths are similar", _SLOT_RANGE),
            ("longer", "its answer is longer", (0.0, 1.0)),
        )
    ]


def _slots_at_similar_lengths(decided: Sequence[tuple[Comparison, bool]]) -> list[Share]:
    """How often each slot is chosen in its comparisons of similar lengths."""
    slots: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for comparison, first_is_chosen in decided:
        if length_band(comparison) == "similar":
            slots[comparison.first].append((comparison.prompt.id, first_is_chosen))
            slots[comparison.second].append((comparison.prompt.id, not first_is_chosen))
    return [
        Share.of(
            f"{slot}_where_similar",
            f"{slot} is chosen when the lengths are similar",
            slots[slot],
            _SLOT_RANGE,
            _SLOT_REMEDY,
        )
        for slot in sorted(slots, key=lambda slot: int(slot.rpartition("-")[2]))
    ]


def _transitive(decided: Sequence[tuple[Comparison, bool]]) -> Share:
    """How often the verdicts on three answers are transitive, if all three pairs are decided. In a
    cycle each answer is preferred once."""
    by_prompt: dict[str, dict[frozenset[str], str]] = defaultdict(dict)
    for comparison, first_is_chosen in decided:
        preferred = comparison.first if first_is_chosen else comparison.second
        by_prompt[comparison.prompt.id][comparison.id.names] = preferred
    values = []
    for prompt_id, preferred_of in by_prompt.items():
        for three in combinations(sorted(set().union(*preferred_of)), 3):
            pairs = [frozenset(pair) for pair in combinations(three, 2)]
            if all(pair in preferred_of for pair in pairs):
                values.append((prompt_id, len({preferred_of[pair] for pair in pairs}) < 3))
    return Share.of(
        "transitive",
        "The three verdicts on three answers are transitive",
        values,
        (0.9, 1.0),
        "the judge's verdicts are cyclic (by chance alone, a quarter are): use a stronger judge, "
        "or make the rubric more specific",
    )


def _positions(ballots: Sequence[BallotSummary]) -> list[Share]:
    """How the judge reacts to the order of the answers, and to the same question asked again."""
    compared = [ballot for ballot in ballots if ballot.compares]
    first = [
        (ballot.prompt_id, ballot.outcome == "first")
        for ballot in compared
        if ballot.repeat == 0 and ballot.outcome != "tie"
    ]
    orders: dict[ComparisonId, list[BallotSummary]] = defaultdict(list)
    repeats: dict[tuple[ComparisonId, str], list[BallotSummary]] = defaultdict(list)
    for ballot in compared:
        if ballot.repeat == 0:
            orders[ballot.comparison_id].append(ballot)
        repeats[ballot.comparison_id, ballot.first].append(ballot)
    agree, stable = (
        [
            (group[0].prompt_id, len({ballot.preferred for ballot in group}) == 1)
            for group in groups.values()
            if len(group) > 1
        ]
        for groups in (orders, repeats)
    )
    remedy = "the judge decides by position: use a stronger judge, or make the rubric more specific"
    return [
        Share.of(
            "first_position", "The answer shown first is preferred", first, (0.35, 0.65), remedy
        ),
        Share.of(
            "swap_consistency", "Both orders yield the same verdict", agree, (0.6, 1.0), remedy
        ),
        Share.of(
            "repeat_stability",
            "Asked again, the judge gives the same verdict",
            stable,
            (0.8, 1.0),
            "the judge decides at random: use a stronger judge, or make the rubric more specific",
        ),
    ]


def _design_effect(values: _Values) -> float:
    """The variance of the share clustered by prompt, divided by the variance of independent values;
    at least 1. If all values are equal, both are 0, and each prompt counts once."""
    if not values:
        return 1.0
    sizes = Counter(prompt for prompt, _ in values)
    hits = Counter(prompt for prompt, hit in values if hit)
    n = len(values)
    share = hits.total() / n
    if share in (0.0, 1.0):
        return n / len(sizes)
    between = sum((hits[prompt] - share * size) ** 2 for prompt, size in sizes.items())
    return max(1.0, between / (n * share * (1 - share)))
