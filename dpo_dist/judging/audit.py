"""What a set of labels says about itself: shares that show a judge's or a sampler's bias.

None of them proves that a label is right. Each has a range in which nothing is wrong with it and
a remedy for what lies outside; the whole interval has to lie outside before anyone is warned.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from dpo_dist.judging.ballots import Vote
from dpo_dist.judging.panel import Contest
from dpo_dist.storage.records import ContestId, Verdict

_SLOT_RANGE = (0.1, 0.9)
_SLOT_REMEDY = (
    "the label nearly equals the slot: DPO would learn a temperature, not a preference. Bring the "
    "slots' temperatures closer together"
)
SIMILAR = 1.25  # answers whose lengths differ by no more than this factor are of a length


@dataclass(frozen=True)
class Share:
    """`hits` of `n`; outside `healthy` (low, high) the `remedy` applies.

    The values of one prompt are not independent: `design_effect` of them are worth one that is
    (Kish 1965). It is 1 where every prompt has one value.
    """

    name: str
    label: str
    hits: int
    n: int
    design_effect: float
    healthy: tuple[float, float]
    remedy: str


@dataclass(frozen=True, slots=True)
class _Value:
    """One that a share is taken of, and the prompt that it is about."""

    prompt_id: str
    hit: bool


def audit(
    contests: Sequence[Contest], verdicts: Sequence[Verdict], votes: Iterable[Vote]
) -> list[Share]:
    """The shares of one judged set. `contests` and `verdicts` belong together in order; of two
    slots, `a` is the first in every contest. Lengths are in characters."""
    decided = [
        (contest, verdict.preferred == contest.a)
        for contest, verdict in zip(contests, verdicts, strict=True)
        if verdict.outcome == "preferred"
    ]
    if any(contest.number for contest in contests):
        slots = [*_slots_of_a_length(decided), _transitive(decided)]
    else:
        slots = _first_slot_by_length(decided)
    return [_longer(decided), *slots, *_positions(list(votes))]


def length_band(contest: Contest) -> str:
    """The first slot's answer is `shorter` than the other, `similar` or `longer`."""
    ratio = len(contest.a_text) / len(contest.b_text)
    return "shorter" if ratio < 1 / SIMILAR else "longer" if ratio > SIMILAR else "similar"


def _longer(decided: Sequence[tuple[Contest, bool]]) -> Share:
    unequal = [
        _Value(contest.prompt.id, (len(contest.a_text) > len(contest.b_text)) == a_is_chosen)
        for contest, a_is_chosen in decided
        if len(contest.a_text) != len(contest.b_text)
    ]
    return _share(
        "chosen_is_longer",
        "The chosen answer is the longer one",
        unequal,
        (0.25, 0.75),
        "the labels teach length: state in the rubric that length is not a merit, or drop pairs "
        "of very different lengths",
    )


def _first_slot_by_length(decided: Sequence[tuple[Contest, bool]]) -> list[Share]:
    """The slots differ by temperature, and temperature by length: at equal lengths what is left
    is the temperature itself."""
    bands: dict[str, list[_Value]] = {"shorter": [], "similar": [], "longer": []}
    for contest, a_is_chosen in decided:
        bands[length_band(contest)].append(_Value(contest.prompt.id, a_is_chosen))
    labels = {
        "shorter": "The first slot is chosen where its answer is shorter",
        "similar": "The first slot is chosen where lengths are similar",
        "longer": "The first slot is chosen where its answer is longer",
    }
    return [
        _share(
            f"first_slot_where_{band}",
            labels[band],
            chosen,
            _SLOT_RANGE if band == "similar" else (0.0, 1.0),
            _SLOT_REMEDY,
        )
        for band, chosen in bands.items()
    ]


def _slots_of_a_length(decided: Sequence[tuple[Contest, bool]]) -> list[Share]:
    """Every slot's share of its own comparisons with answers of a length."""
    slots: dict[str, list[_Value]] = defaultdict(list)
    for contest, a_is_chosen in decided:
        if length_band(contest) == "similar":
            slots[contest.a].append(_Value(contest.prompt.id, a_is_chosen))
            slots[contest.b].append(_Value(contest.prompt.id, not a_is_chosen))
    return [
        _share(
            f"{slot}_where_similar",
            f"Of two answers of similar lengths, {slot}'s is chosen",
            slots[slot],
            _SLOT_RANGE,
            _SLOT_REMEDY,
        )
        for slot in sorted(slots, key=lambda slot: int(slot.rpartition("-")[2]))
    ]


def _transitive(decided: Sequence[tuple[Contest, bool]]) -> Share:
    """Whether three answers, each pair of which is decided, stand in an order; otherwise they
    are a cycle, of which every answer is preferred once."""
    by_prompt: dict[str, dict[frozenset[str], str]] = defaultdict(dict)
    for contest, a_is_chosen in decided:
        preferred = contest.a if a_is_chosen else contest.b
        by_prompt[contest.prompt.id][contest.id.names] = preferred
    values = []
    for prompt_id, preferred_of in by_prompt.items():
        for three in combinations(sorted(set().union(*preferred_of)), 3):
            pairs = [frozenset(pair) for pair in combinations(three, 2)]
            if all(pair in preferred_of for pair in pairs):
                in_order = len({preferred_of[pair] for pair in pairs}) < 3
                values.append(_Value(prompt_id, in_order))
    return _share(
        "transitive",
        "The three verdicts on three answers are transitive",
        values,
        (0.9, 1.0),
        "the judge's verdicts are cyclic (by chance alone, a quarter are): use a stronger judge, "
        "or make the rubric more definite",
    )


def _positions(votes: Sequence[Vote]) -> list[Share]:
    """What the judge makes of the order in which it is shown the answers."""
    compared = [vote for vote in votes if vote.compares]
    first = [
        _Value(vote.prompt_id, vote.outcome == "first")
        for vote in compared
        if vote.repeat == 0 and vote.outcome != "tie"
    ]
    orders: dict[ContestId, list[Vote]] = defaultdict(list)
    repeats: dict[tuple[ContestId, str], list[Vote]] = defaultdict(list)
    for vote in compared:
        if vote.repeat == 0:
            orders[vote.contest_id].append(vote)
        repeats[vote.contest_id, vote.first].append(vote)
    agree, stable = (
        [
            _Value(group[0].prompt_id, len({vote.preferred for vote in group}) == 1)
            for group in groups.values()
            if len(group) > 1
        ]
        for groups in (orders, repeats)
    )
    remedy = "the judge decides by position: use a stronger judge, or make the rubric more definite"
    return [
        _share(
            "first_position", "The answer shown first is preferred", first, (0.35, 0.65), remedy
        ),
        _share("swap_consistency", "Both orders yield the same verdict", agree, (0.6, 1.0), remedy),
        _share(
            "repeat_stability",
            "Asked again, the judge gives the same verdict",
            stable,
            (0.8, 1.0),
            "the judge decides at random: use a stronger judge, or make the rubric more definite",
        ),
    ]


def _share(
    name: str, label: str, values: Sequence[_Value], healthy: tuple[float, float], remedy: str
) -> Share:
    hits, effect = sum(value.hit for value in values), _design_effect(values)
    return Share(name, label, hits, len(values), effect, healthy, remedy)


def _design_effect(values: Sequence[_Value]) -> float:
    """The variance of the share over prompts by that over independent values, at least 1.

    Where all values are equal there is neither; then a prompt counts once.
    """
    if not values:
        return 1.0
    sizes = Counter(value.prompt_id for value in values)
    hits = Counter(value.prompt_id for value in values if value.hit)
    n = len(values)
    share = hits.total() / n
    if share in (0.0, 1.0):
        return n / len(sizes)
    between = sum((hits[prompt] - share * size) ** 2 for prompt, size in sizes.items())
    return max(1.0, between / (n * share * (1 - share)))
