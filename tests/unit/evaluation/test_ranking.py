import pytest
from scipy.special import logit

from dpo_dist.evaluation.ranking import Game, Ranking, Strength, rank


def games(a: str, b: str, wins: int, losses: int, ties: int = 0) -> list[Game]:
    worth = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Game(f"p{n}", a, b, value) for n, value in enumerate(worth)]


def test_two_arms_are_their_log_odds_with_one_tie_more() -> None:
    found = rank(games("dpo", "sft", 30, 10, ties=4), ["sft", "dpo"])
    first, second = found.strengths
    assert (first.arm, second.arm, found.n) == ("dpo", "sft", 44)
    assert first.strength - second.strength == pytest.approx(logit(32.5 / 45))
    assert first.strength == pytest.approx(-second.strength)
    assert 0 < first.low < first.strength < first.high


def test_an_arm_that_always_wins_is_finite() -> None:
    found = rank(games("dpo", "sft", 20, 0), ["sft", "dpo"])
    assert found.strengths[0].strength == pytest.approx(logit(20.5 / 21) / 2)


def test_arms_that_were_never_compared_have_no_common_scale() -> None:
    apart = games("a", "b", 3, 2) + games("c", "d", 3, 2)
    assert rank(apart, ["a", "b", "c", "d"]) == Ranking(5, (), False, "not_connected")
    assert len(rank([*apart, *games("b", "c", 1, 1)], ["a", "b", "c", "d"]).strengths) == 4
    assert rank([], ["a", "b"]).note == "not_connected"


def test_verdicts_in_a_circle_are_said_to_be() -> None:
    circle = games("a", "b", 9, 4) + games("b", "c", 9, 4) + games("c", "a", 9, 4)
    found = rank(circle, ["a", "b", "c"])
    assert found.circular and [s.strength for s in found.strengths] == pytest.approx([0, 0, 0])
    line = games("a", "b", 9, 4) + games("b", "c", 9, 4) + games("c", "a", 4, 9)
    middle = rank(line, ["a", "b", "c"]).strengths[1]
    assert not rank(line, ["a", "b", "c"]).circular and middle.arm == "b"
    # Every prompt puts b exactly between a and c: no variance, and so no interval.
    assert middle == Strength("b", pytest.approx(0), None, None)


def test_too_little_is_named() -> None:
    assert rank(games("a", "b", 0, 0, ties=8), ["a", "b"]) == Ranking(8, (), False, "all_ties")
    three = [Game("p0", "a", "b", 1.0), Game("p0", "b", "c", 1.0)]
    assert rank(three, ["a", "b", "c"]).note == "too_few"
    assert rank(three[:1], ["a", "b"]) == Ranking(1, (), False, "too_few")
