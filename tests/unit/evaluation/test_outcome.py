from typing import Any

import pytest

from dpo_dist.evaluation.outcome import decide
from dpo_dist.evaluation.scores import (
    HEADLINE,
    ArmDifference,
    ArmWinRate,
    Comparisons,
    MetricRow,
    Outcome,
)


def row(label: str, change: float | None, p: float | None, **more: Any) -> MetricRow:
    values = {
        "metric": label,
        "label": label,
        "unit": "share",
        "better": "higher",
        "judged": False,
        "decoding": 0,
        "arms": {},
        "differences": (),
        "delta": ArmDifference(*HEADLINE, n=50, mean=change, p_holm=p),
        "missing": {},
    }
    return MetricRow(**values | more)


def win_rate(low: float | None, high: float | None, **more: Any) -> ArmWinRate:
    a, b = HEADLINE
    counts = dict.fromkeys(("n", "wins", "losses", "ties", "inconsistent"), 0)
    values = counts | {"mean": None, "missing": {}, "worst": 0.51, "best": None, "p": None}
    values |= {"p_holm": None, "detectable": None, "length_controlled": None, "note": ""}
    return ArmWinRate(decoding=0, a=a, b=b, low=low, high=high, **values | more)


def scores(
    *rows: MetricRow, rate: tuple[float | None, float | None] | None = (0.52, 0.7), **more: Any
) -> Comparisons:
    """What two arms show; `more` is about the win rate."""
    return Comparisons(
        decodings=(),
        arms=HEADLINE,
        metrics=rows,
        preferred=None if rate is None else win_rate(*rate, **more),
        pairwise=(),
        length=None,
        ranking=None,
    )


SAME, BETTER, WORSE = row("Same", 0.01, 0.4), row("Up", 0.2, 0.001), row("Down", -0.1, 0.05)


@pytest.mark.parametrize(
    ("rows", "rate", "outcome"),
    [
        ([SAME], (0.52, 0.7), "improved"),
        ([SAME, BETTER], (0.5, 0.7), "no_evidence"),
        ([SAME, WORSE], (0.52, 0.7), "regressed"),
        ([SAME, BETTER], (0.3, 0.49), "regressed"),
        ([SAME], (0.4, 0.6), "no_evidence"),
        ([row("Down", -0.1, 0.0501)], (0.52, 0.7), "improved"),
        ([SAME, BETTER], None, "improved"),
        ([SAME], None, "no_evidence"),
        ([BETTER, WORSE], None, "regressed"),
        ([row("Longer", 3.0, 0.001, better="lower")], None, "regressed"),
        ([row("Longer", -3.0, 0.001, better="lower")], None, "improved"),
        ([row("Longer", -3.0, 0.001, better=None)], None, "no_evidence"),
    ],
)
def test_the_rule(rows, rate, outcome: str) -> None:
    assert decide(scores(*rows, rate=rate)).outcome == outcome


def test_missing_verdicts_that_could_turn_the_result_are_no_improvement() -> None:
    """20 won and 2 lost, but 138 refused: whoever was asked about the rest may say otherwise."""

    def asked(refused: int, worst: float) -> Outcome:
        missing = {"refusal": refused}
        return decide(scores(SAME, BETTER, rate=(0.72, 0.98), n=22, missing=missing, worst=worst))

    found = asked(138, 0.125)
    assert found.outcome == "no_evidence"
    assert found.reasons[1] == (
        "138 of 160 verdicts are missing: if all of them were losses, the rate would be 12.5 %"
    )
    assert asked(8, 0.53).outcome == "improved"


def test_what_is_guarded() -> None:
    judged = row("Judge score", -1.0, 0.001, judged=True)
    later = row("Later", -1.0, 0.001, decoding=1)
    everything = scores(SAME, WORSE, judged, later)
    assert decide(everything).guarded == ("Same", "Down")
    assert decide(scores(SAME, judged, later)).outcome == "improved"
    assert decide(everything, ["Same"]).outcome == "improved"
    assert decide(everything, ["Judge score"]).outcome == "regressed"
    assert decide(everything, []).guarded == () and decide(everything, []).outcome == "improved"


def test_the_reasons_carry_the_figures() -> None:
    assert decide(scores(WORSE, rate=(0.523, 0.71))).reasons == (
        "the interval of SFT+DPO's win rate over SFT, 52.3 to 71.0 %, lies above 50 %",
        "Down is significantly worse",
    )
    assert "no judge compared SFT+DPO with SFT" in decide(scores(SAME, rate=None)).reasons


def test_what_could_not_be_compared_is_no_evidence_and_said() -> None:
    absent = row("Absent", None, None)
    nobody = row("Alone", None, None, delta=None)
    found = decide(scores(absent, nobody, rate=(None, None), note="no_verdict"))
    assert found.outcome == "no_evidence"
    assert found.reasons == (
        "SFT+DPO's win rate over SFT has no interval (no verdict)",
        "Absent could not be compared",
        "Alone could not be compared",
    )
