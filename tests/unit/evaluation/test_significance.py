import pytest

from dpo_dist.evaluation.significance import Difference, paired_difference, points_difference


def test_differences_are_paired() -> None:
    a = {f"p{n}": n % 7 + 0.4 + 0.2 * (n % 2) for n in range(100)}
    b = {f"p{n}": float(n % 7) for n in range(120)}
    found = paired_difference(a, b, seed=0)
    assert (found.n, found.mean, found.test) == (100, pytest.approx(0.5), "bootstrap")
    assert 0.45 < found.low < 0.5 < found.high < 0.55, "far narrower than a's own spread"
    assert found.p < 0.001


def test_too_little_data_has_no_test() -> None:
    assert paired_difference({}, {"a": 1.0}, seed=0) == Difference(0, None)
    assert paired_difference({"a": 1.0}, {"a": 0.0}, seed=0) == Difference(1, 1.0)
    assert points_difference({"a": 1.0}, {"b": 0.0}, seed=0) == Difference(0, None)


def test_shares_that_never_disagree_are_not_certainly_equal() -> None:
    same = {n: float(n < 7) for n in range(20)}
    found = paired_difference(same, same, seed=0)
    assert (found.mean, found.p, found.test) == (0.0, 1.0, "mcnemar")
    assert found.low == -found.high < -0.1


def test_shares_that_always_differ_stay_in_their_range() -> None:
    found = paired_difference(dict.fromkeys("abcdefgh", 1.0), dict.fromkeys("abcdefgh", 0.0), 0)
    assert found.mean == found.high == 1.0 and found.p == pytest.approx(2 / 2**8)


def test_points_that_all_move_alike_have_a_sign_test() -> None:
    low, high = ({n: float(n % 4 + up) for n in range(12)} for up in (1, 2))
    found = points_difference(high, low, seed=0)
    assert found == Difference(12, 1.0, None, None, pytest.approx(2 / 2**12), "sign")
    assert points_difference(low, low, seed=0).p == 1.0


def test_points_of_zero_and_one_are_points() -> None:
    a, b = {n: float(n % 2) for n in range(40)}, {n: float(n % 3 == 0) for n in range(40)}
    assert points_difference(a, b, seed=0).test == "bootstrap"
    assert paired_difference(a, b, seed=0).test == "mcnemar"
