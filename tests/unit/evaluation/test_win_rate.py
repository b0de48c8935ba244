import pytest

from dpo_dist.evaluation.win_rate import LengthControlled, WinRate, length_controlled, win_rate
from dpo_dist.storage.records import Verdict


def verdicts(**outcomes: int) -> list[Verdict]:
    """So many verdicts of each outcome; `wins` and `losses` are dpo's over sft."""
    rows = []
    for outcome, n in outcomes.items():
        arms = {"wins": ("dpo", "sft"), "losses": ("sft", "dpo")}.get(outcome)
        for _ in range(n):
            fields = {"prompt_id": f"p{len(rows)}", "between": ("dpo", "sft"), "outcome": outcome}
            if arms:
                fields |= {"outcome": "preferred", "preferred": arms[0], "other": arms[1]}
            rows.append(Verdict.model_validate(fields))
    return rows


def test_every_outcome_is_counted_once() -> None:
    given = verdicts(wins=5, losses=2, tie=1, inconsistent=2, refusal=3, unparsed=1)
    found = win_rate(given, "dpo", seed=0)
    assert (found.n, found.wins, found.losses, found.ties, found.inconsistent) == (10, 5, 2, 1, 2)
    assert found.mean == 0.65 and found.low < 0.65 < found.high
    assert found.missing == {"refusal": 3, "unparsed": 1}
    assert (found.worst, found.best) == (6.5 / 14, 10.5 / 14)
    assert found.p == pytest.approx(0.453125), "of 5 and 2, without the halves"
    mirrored = win_rate(given, "sft", seed=0)
    assert (mirrored.mean, mirrored.worst) == (pytest.approx(0.35), pytest.approx(3.5 / 14))


def test_what_can_be_detected_shrinks_with_n_and_with_ties() -> None:
    few, many = (win_rate(verdicts(wins=n, losses=n), "dpo", 0).detectable for n in (50, 200))
    assert few == pytest.approx(0.14, abs=0.001) and many == pytest.approx(0.07, abs=0.001)
    assert win_rate(verdicts(wins=25, losses=25, tie=50), "dpo", 0).detectable < few


@pytest.mark.parametrize(
    ("outcomes", "n", "mean", "note"),
    [
        ({}, 0, None, "no_verdict"),
        ({"refusal": 4}, 0, None, "no_verdict"),
        ({"wins": 1, "refusal": 4}, 1, 1.0, "one_prompt"),
        ({"tie": 6, "inconsistent": 3}, 9, 0.5, "no_preference"),
        ({"tie": 6, "refusal": 3}, 6, 0.5, "all_ties"),
        ({"inconsistent": 6}, 6, 0.5, "all_inconsistent"),
    ],
)
def test_what_gives_no_interval_is_named(outcomes, n, mean, note) -> None:
    found = win_rate(verdicts(**outcomes), "dpo", seed=0, longer={"p0": 3.0, "p1": 1.0})
    assert (found.n, found.mean, found.note) == (n, mean, note)
    assert found.low is None and found.high is None and found.detectable is None
    assert found.length_controlled.mean is None and found.length_controlled.note
    if n == 0:
        assert found.p is None and (found.worst, found.best) == (
            (0, 1) if outcomes else (None,) * 2
        )


def test_winning_every_time_is_not_certainty() -> None:
    found: WinRate = win_rate(verdicts(wins=20), "dpo", seed=0)
    assert found.mean == found.high == 1.0 and 0.8 < found.low < 0.9 and found.note == ""
    assert found.p == pytest.approx(2 / 2**20)


def test_a_length_that_explains_the_verdicts_leaves_nothing() -> None:
    """dpo wins where it is longer: among equals it would not."""
    longer = {f"p{n}": float(n % 9 - 2) for n in range(300)}
    wins = {p: float(d > 0 or (d == 0 and int(p[1:]) % 2)) for p, d in longer.items()}
    wins |= {f"p{n}": 1 - wins[f"p{n}"] for n in range(0, 300, 11)}  # some luck
    found = length_controlled(wins, longer)
    assert sum(wins.values()) / 300 > 0.6 and found.low < 0.5 < found.high
    assert found.slope > 1 and (found.n, found.note) == (300, "")


@pytest.mark.parametrize(
    ("worth", "longer", "note"),
    [
        ([1.0, 0.0], [1, 2], "too_few"),
        ([1.0, 0.0, 0.5], [4, 4, 4], "equal_lengths"),
        ([1.0, 1.0, 0.0, 0.0], [3, 2, -1, -4], "separated"),
        ([1.0, 1.0, 1.0, 1.0], [3, 2, -1, -4], "all_equal"),
        ([0.5, 0.5, 0.5, 0.5], [3, 2, -1, -4], "all_equal"),
    ],
)
def test_a_rate_that_lengths_cannot_give_is_named(worth, longer, note) -> None:
    found = length_controlled(dict(enumerate(worth)), dict(enumerate(longer)))
    assert found == LengthControlled(len(worth), None, None, None, None, note)
