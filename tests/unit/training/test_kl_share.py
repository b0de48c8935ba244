"""The KL takes at most its share of the training's time."""

from __future__ import annotations

import pytest

from dpo_dist.training import kl_share
from dpo_dist.training.kl_share import KlShare


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(kl_share.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("cost", "max_share", "measured"),
    [
        (1.0, 0.05, 5),  # five of five seconds
        (0.5, 0.05, 6),  # all
        (2.0, 0.05, 2),  # the first and the last
        (3.0, 0.05, 1),  # the first one shows that there is no time for a second
        (3.0, 0.10, 3),
        (9.0, 1.00, 6),
    ],
)
def test_measurements_are_spread_over_the_validations(
    cost: float, max_share: float, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, share = Clock(monkeypatch), KlShare(max_share)
    steps = []
    for step in range(0, 101, 20):  # a second per step
        if share.due(step, 100, 20):
            steps.append(step)
            with share.measuring():
                clock.now += cost
        clock.now += 20
    assert len(steps) == measured
    assert steps[0] == 0
    assert measured == 1 or steps[-1] == 100
    assert measured * cost <= max(max_share * 100, cost)


def test_a_resumed_training_measures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, share = Clock(monkeypatch), KlShare(0.05)
    assert share.due(60, 100, 20), "the cost is unknown"
    with share.measuring():
        clock.now += 2
    clock.now += 20
    assert not share.due(80, 100, 20)
    clock.now += 20
    assert share.due(100, 100, 20)
