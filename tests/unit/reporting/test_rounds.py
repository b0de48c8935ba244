"""The rounds in the report: what was not measured is said, and every plot has its intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.reporting.build import build
from dpo_dist.reporting.plots import KL_BY_ROUND, WIN_RATE, round_plots
from dpo_dist.reporting.rounds import RoundFigures, rounds_table
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json
from dpo_dist.storage.figures import parse_figures
from tests.report_figures import estimate, evaluation, training
from tests.unit.reporting.test_build import make_run

CUT_OFF = estimate(40, 0.025, 0.004, 0.129)
NOT_MEASURED = dict.fromkeys(("first_loss", "kl", "accuracy", "margin"))


def round_of(number: int, evaluated: dict[str, Any] | None = None, **trained: Any) -> RoundFigures:
    margin = {"first": 0.0, "last": -0.0631}
    figures = {
        **{"round": number, "prompts": 24, "pairs": 11, "taken_over": 0, "funnel": []},
        "training": training(**{"margin": margin, **trained}),
        "evaluation": evaluation(cut_off=CUT_OFF, **(evaluated or {})),
        "wall_seconds": 61.4,
    }
    return parse_figures(figures, RoundFigures, "test")


FIRST = round_of(1)
SECOND = round_of(2, {"preferred": None}, reference="round 1", **NOT_MEASURED)


def test_a_row_has_the_rounds_figures_and_what_was_not_measured_is_said() -> None:
    table = rounds_table([FIRST, SECOND])
    assert [[label, *map(str, cells)] for label, cells in table.rows] == [
        [
            *("1", "24", "11", "0.6931", "55.0 % [40–70] n=20"),
            *("0.0664 ± 0.024 n=16, step 18 from SFT", "75.0 % [41–93] n=8", "-0.063"),
            *("2.5 % [0–13] n=40", "61 s"),
        ],
        ["2", "24", "11", *["–"] * 5, "2.5 % [0–13] n=40", "61 s"],
    ]
    assert all(len(cells) + 1 == len(table.headers) for _, cells in table.rows)
    assert rounds_table([]).rows == ()


def test_win_rate_and_kl_are_drawn_by_round_with_their_intervals() -> None:
    third = round_of(3, reference="round 2")
    plots = dict(round_plots([FIRST, SECOND, third]))
    assert list(plots) == [WIN_RATE, KL_BY_ROUND]
    for svg in plots.values():
        assert ">round</text>" in svg and "LineCollection" in svg
    assert "chance" in plots[WIN_RATE] and "from its start" in plots[KL_BY_ROUND]
    to_base = [round_of(number, reference="base") for number in (1, 2)]
    assert "from base, 95 % interval" in dict(round_plots(to_base))[KL_BY_ROUND]


def test_what_was_measured_in_no_round_is_not_drawn() -> None:
    assert round_plots([SECOND]) == []
    (title,) = [title for title, _ in round_plots([SECOND, round_of(1, kl=None)])]
    assert title == WIN_RATE


@pytest.fixture
def report(tmp_path: Path, write_run) -> Path:
    """The directory of a report on two rounds, of which the first judged more pairs."""
    metrics = [{"type": "label_match", "field": "severity"}]
    prompts = {"path": "p.jsonl"}
    config = load_config(
        write_run(
            model={"base": "m"},
            sample={"prompts": prompts, "engine": {"type": "hf"}},
            judge={"judge": {"type": "metric", "metrics": metrics}},
            train={},
            rounds=2,
            evaluate={"prompts": prompts, "metrics": metrics},
        )
    )
    run = Run(config)
    first, second = run.rounds()
    for at_round in (first, second):
        make_run(at_round.folder)
    path = second.directory("train") / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"reference": "round 1"})
    path = first.directory("judge") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"] |= {"in": 58, "kept": 40}
    spend = {"usd": 1.5, "usage": {"attempts": 9}}
    write_json(path, manifest | {"spend": spend})
    build(run, tmp_path / "report")
    return tmp_path / "report"


def test_every_round_has_its_row_funnel_alarms_and_cost(report: Path) -> None:
    figures = json.loads((report / "report.json").read_text())
    first, second = figures["rounds"]
    assert (first["pairs"], second["pairs"]) == (40, 30)
    training = first["training"]
    assert (training["first_loss"], training["kl"]["per_token"]) == (0.69, 0.3)
    assert training["accuracy"]["mean"] == 0.6
    assert first["evaluation"]["cut_off"]["mean"] == 0.0
    assert first["wall_seconds"] == pytest.approx(4 * 12.3)
    assert [step["kept"] for step in first["funnel"]] == [48, 40, 30]
    assert figures["funnel"] == second["funnel"], "the main figures are the last round's"
    assert [(a["round"], a["step"]) for a in figures["alarms"]] == [(1, 2), (2, 2)]
    assert list(figures["spend"]) == ["round-1/judge"]
    assert list(figures["phases"])[:2] == ["round-1/sample", "round-1/judge"]
    page = (report / "report.html").read_text(encoding="utf-8")
    markdown = (report / "report.md").read_text(encoding="utf-8")
    for text in ("Round 1, step 2, kl budget", "Round 2, step 2, kl budget"):
        assert text in page and text in markdown
    data = page[page.index("<h2>Preference data") : page.index("<h2>Side by side")]
    assert data.count('class="funnel"') == 2 and "<td>40 (3 inconsistent)</td>" in data
    assert page.count("<svg") == 6 + 2
    assert (
        "judge: 58 comparisons in, 40 kept" in markdown
        and "judge: 48 comparisons in, 30 kept" in markdown
    )
    assert (
        "| 2 | 48 | 30 | 0.6900 | 55.0 % [40–70] n=20 | 0.3 ± 0.039 n=16 from round 1 |" in markdown
    )
    assert "<script>alert(1)" not in page
