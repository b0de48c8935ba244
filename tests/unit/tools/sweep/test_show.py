"""The report of a sweep: which points are ahead, and what is said of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.storage.figures import parse_figures
from dpo_dist.tools.sweep.figures import SweepFigures
from dpo_dist.tools.sweep.show import caveats, findings, frontier, sweep_table, write_report
from tests import report_figures
from tests.report_figures import estimate, evaluation, training, win_rate


def point(
    name: str, kl: float | None, rate: float | None, *, accuracy: float = 0.8
) -> dict[str, Any]:
    """A complete point; without a KL it was not measured, without a rate nobody judged."""
    preferred = None
    if rate is not None:
        preferred = win_rate(estimate(64, rate, rate - 0.1, rate + 0.1))
    measured = None if kl is None else report_figures.kl(kl, se=0.01, step=18)
    return {
        "point": name,
        "report": f"../{name}/report/",
        "settings": {},
        "training": training(accuracy=estimate(17, accuracy, 0.5, 0.95), kl=measured),
        "evaluation": evaluation(preferred=preferred),
    }


def sweep_of(*points: dict[str, Any], **more: Any) -> SweepFigures:
    figures = {"run": "test", "swept": ["train.beta"], "measure": "preferred", "evaluated": True}
    figures |= {"points": points, "tried_before": [], **more}
    return parse_figures(figures, SweepFigures, "test")


FOUR = (
    point("beta=0.03", 0.2, 0.55),  # beta=0.1 has more for less
    point("beta=0.1", 0.1, 0.6),
    point("beta=0.3", 0.05, 0.6),  # as much as beta=0.1 for less
    point("beta=0.5", 0.02, 0.5),
)


def test_a_point_is_ahead_when_no_other_has_as_much_for_less() -> None:
    marks = frontier(sweep_of(*FOUR))
    assert {mark.label: mark.ahead for mark in marks} == {
        "beta=0.03": False,
        "beta=0.1": False,
        "beta=0.3": True,
        "beta=0.5": True,
    }
    assert (marks[0].kl, marks[0].kl_error) == (0.2, pytest.approx(0.0196, abs=1e-6))
    assert marks[0].low == pytest.approx(0.45)


def test_points_that_are_equal_are_both_ahead() -> None:
    marks = frontier(sweep_of(point("a", 0.1, 0.6), point("b", 0.1, 0.6)))
    assert [mark.ahead for mark in marks] == [True, True]


def test_without_a_judge_it_is_the_validation_accuracy() -> None:
    points = (point("a", 0.1, None, accuracy=0.9), point("b", 0.05, None, accuracy=0.95))
    figures = sweep_of(*points, measure="accuracy")
    assert [(mark.share, mark.ahead) for mark in frontier(figures)] == [(0.9, False), (0.95, True)]
    assert findings(figures) == ["b has the highest validation accuracy: 95.0 % [50–95] n=17."]
    assert any("not whether answers got better" in line for line in caveats(figures))


def test_the_table_says_what_kl_and_when_and_leaves_out_what_nobody_measured() -> None:
    table = sweep_table(sweep_of(*FOUR))
    assert table.headers[2] == "KL from SFT (nats/token, ± 95 %)"
    cells = dict(zip(table.headers[1:], map(str, table.rows[0][1]), strict=True))
    assert cells["KL from SFT (nats/token, ± 95 %)"] == "0.2 ± 0.02 n=16, step 18"
    assert cells["Preferred to SFT"] == "55.0 % [45–65] n=64"
    assert cells["Length over SFT"] == "-3.0 characters [-5.0, -1.0] (-5 %)"
    assert cells["Cut off"] == "12.5 % [6–23] n=64"
    unjudged = sweep_table(sweep_of(point("a", None, None), point("b", None, None)))
    assert not {"Preferred to SFT", "KL from SFT (nats/token, ± 95 %)"} & set(unjudged.headers)


def test_a_point_that_failed_is_named_and_the_best_is_called_optimistic(tmp_path: Path) -> None:
    failed = {"point": "beta=0.9", "settings": {}, "training": None, "evaluation": None}
    failed["report"] = None
    figures = sweep_of(*FOUR, failed, tried_before=["beta=0.7"])
    write_report(figures, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("sweep.json", "sweep.md", "sweep.html", "frontier.svg", "table.txt")
    }
    written = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert written["frontier"] == ["beta=0.3", "beta=0.5"]
    assert written["findings"] == [
        "2 points share the highest win rate over SFT: 60.0 % [50–70] n=64.",
        "Without a win rate over SFT: beta=0.9.",
    ]
    optimistic = "6 points were tried on the same held-out prompts (1 of them in earlier sweeps"
    for name in ("sweep.md", "sweep.html", "table.txt"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert optimistic in text and "its interval is optimistic" in text
        assert "fresh prompts" in text and "not complete" in text


def test_the_frontier_names_every_point_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_report(sweep_of(*FOUR), tmp_path)
    svg = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.text}
    assert {"beta=0.03", "beta=0.1", "beta=0.3", "beta=0.5"} <= texts
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 and "<script" not in page and "Frontier" in page
    write_report(sweep_of(point("a", None, 0.5), point("b", None, 0.6)), tmp_path / "unmeasured")
    assert not (tmp_path / "unmeasured" / "frontier.svg").exists()


def test_settings_that_change_what_is_measured_are_pointed_out() -> None:
    lines = " ".join(caveats(sweep_of(*FOUR, swept=["train.beta", "evaluate.max_new_tokens"])))
    assert "evaluated in different ways (evaluate.max_new_tokens)" in lines
    assert "cannot be compared between values of β" in lines
    assert "between values of β" not in " ".join(
        caveats(sweep_of(*FOUR, swept=["train.max_length"]))
    )
