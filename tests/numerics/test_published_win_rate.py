"""The win rates of real verdicts against those that AlpacaEval has published for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.win_rate import PUBLISHED, figures
from tests.conftest import REAL_VERDICTS


@pytest.mark.skipif(not REAL_VERDICTS.exists(), reason=f"needs {REAL_VERDICTS.name}, real verdicts")
def test_the_published_figures_come_out() -> None:
    found = figures(REAL_VERDICTS)
    assert round(found["win_rate"], 2) == PUBLISHED["win_rate"]
    assert round(found["standard_error"], 2) == PUBLISHED["standard_error"]
    assert found["win_rate_high"] - found["win_rate_low"] == pytest.approx(4 * 1.38, rel=0.03)
    # Without AlpacaEval's difficulties of its prompts it is a near figure, not the same one.
    assert found["length_controlled"] == pytest.approx(25.93, abs=0.01)
    assert found["length_controlled_low"] < PUBLISHED["length_controlled"] < found["win_rate_low"]


def test_a_longer_model_is_worth_less_at_equal_lengths(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    with path.open("w") as file:
        for n in range(80):
            preference, length = [(1, 900), (1, 300), (0, 200), (0.5, 500)][n % 4]
            row = {"prompt_id": str(n), "preference": preference}
            file.write(json.dumps({**row, "len_model": length, "len_baseline": 200}) + "\n")
    found = figures(path)
    assert found["win_rate"] == 62.5
    assert found["length_controlled"] < 50, "at equal lengths the only verdicts are losses"
