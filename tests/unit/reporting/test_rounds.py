"""The rounds in the report: what was not measured is said, and every plot has its intervals."""

from __future__ import annotations

from typing import Any

from dpo_dist.reporting.plots import KL_BY_ROUND, WIN_RATE, round_plots
from dpo_dist.reporting.tables import rounds_table

FIRST: dict[str, Any] = {
    "round": 1,
    "reference": "SFT",
    "prompts": 24,
    "pairs": 11,
    "first_loss": 0.69312,
    "preferred": {"n": 20, "mean": 0.55, "low": 0.4, "high": 0.7},
    "kl_per_token": 0.0664,
    "kl_per_token_se": 0.012,
    "reward_accuracy": 0.75,
    "reward_margin": -0.0631,
    "cut_off": 0.025,
    "wall_seconds": 61.4,
}
NOTHING = dict.fromkeys(
    ("first_loss", "preferred", "kl_per_token", "kl_per_token_se", "reward_accuracy", "cut_off")
)
SECOND = FIRST | {"round": 2, "reference": "round 1"} | NOTHING | {"reward_margin": None}


def test_a_row_has_the_rounds_figures_and_what_was_not_measured_is_said() -> None:
    table = rounds_table([FIRST, SECOND])
    assert [[label, *map(str, cells)] for label, cells in table.rows] == [
        [
            *("1", "24", "11", "0.6931", "55.0 % [40–70] n=20", "0.066 ± 0.012 from SFT"),
            *("0.75", "-0.063", "2.5 %", "61 s"),
        ],
        ["2", "24", "11", *["n/a"] * 6, "61 s"],
    ]
    assert all(len(cells) + 1 == len(table.headers) for _, cells in table.rows)
    assert rounds_table([]).rows == ()


def test_win_rate_and_kl_are_drawn_by_round_with_their_intervals() -> None:
    third = FIRST | {"round": 3, "reference": "round 2", "kl_per_token": 0.2}
    plots = dict(round_plots([FIRST, SECOND, third]))
    assert list(plots) == [WIN_RATE, KL_BY_ROUND]
    for svg in plots.values():
        assert ">round</text>" in svg and "LineCollection" in svg
    assert "chance" in plots[WIN_RATE] and "from its start" in plots[KL_BY_ROUND]
    to_sft = dict(round_plots([FIRST, third | {"reference": "SFT"}]))
    assert "from SFT" in to_sft[KL_BY_ROUND]


def test_what_was_measured_in_no_round_is_not_drawn() -> None:
    assert round_plots([SECOND]) == []
    (title,) = [title for title, _ in round_plots([SECOND, FIRST | {"kl_per_token": None}])]
    assert title == WIN_RATE
