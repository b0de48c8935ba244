"""What judges are asked and what that costs: by hand, and never 0 where a price is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config import Config
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.rubric import COMPARE
from dpo_dist.storage.records import Prompt
from dpo_dist.tools.plan.data import Texts
from dpo_dist.tools.plan.figure import Figure
from dpo_dist.tools.plan.judging import askings, bill
from dpo_dist.tools.plan.rates import Rates

PROMPTS = Texts(Figure(1000, "counted"), prompt=100.0)
HELD_OUT = Texts(Figure(200, "counted"), prompt=50.0)


def config(tmp_path: Path, model: str = "claude-opus-4-7", **judge: object) -> Config:
    (tmp_path / "rubric.md").write_text("r" * 350)
    claude = {"type": "claude", "model": model, "rubric": str(tmp_path / "rubric.md"), **judge}
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"base": "owner/model"},
            "sample": {
                "prompts": {"path": "p.jsonl"},
                "engine": {"type": "hf"},
                "slots": [{"temperature": t} for t in (0.5, 0.7, 1.0)],
            },
            "judge": {"judge": claude, "repeat": 0.1, "canaries": {"per_kind": 4}},
            "train": {},
            "evaluate": {
                "prompts": {"path": "e.jsonl"},
                "metrics": [{"type": "length"}],
                "judge": {"type": "metric", "metrics": [{"type": "rouge_l", "field": "x"}]},
                "judge_scores": [{"judge": claude}],
            },
        }
    )


def test_every_comparison_is_asked_in_both_orders_repeats_and_canaries_too(tmp_path) -> None:
    found = list(askings(config(tmp_path), PROMPTS, HELD_OUT, (128, 64)))
    labels, pairwise, scores = found
    # Three pairs of three slots, two orders and a tenth again; five kinds of four canaries twice.
    assert labels.requests == 1000 * 3 * 2.1 + 2 * 5 * 4
    assert (labels.prompt, labels.answers) == (100, 256)
    assert (pairwise.requests, pairwise.answers) == (200 * 3 * 2, 128)  # base, sft, dpo
    assert (scores.requests, scores.answers) == (200 * 3, 64)
    assert list(askings(config(tmp_path), None, None, (128, 64))) == []


def test_a_bill_is_the_price_table_s_and_a_batch_half_of_it(tmp_path) -> None:
    (asking, *_) = askings(config(tmp_path, concurrency=10), PROMPTS, HELD_OUT, (128, 64))
    found = bill(asking, Rates())
    count = 6340
    frame = len(COMPARE.question(Comparison(Prompt(id="-", messages=()), "a", "b", "", "")))
    read = count * (100 + 256 + frame / 3.5) + count * 100  # the rubric's 350 characters
    assert found.read == pytest.approx(read / 1e6, rel=1e-5)
    assert found.written == count * 400 / 1e6
    assert found.online_usd == pytest.approx(5 * found.read + 25 * found.written)
    assert found.batch_usd == pytest.approx(found.online_usd / 2)
    assert found.hours == pytest.approx(count * 10 / 10 / 3600)


def test_an_unknown_price_is_none_and_a_free_judge_is_free(tmp_path) -> None:
    asking, metric, _ = askings(config(tmp_path, "claude-of-tomorrow"), PROMPTS, HELD_OUT, (8, 8))
    found = bill(asking, Rates())
    assert (found.online_usd, found.batch_usd) == (None, None)
    assert found.read > 0
    assert bill(metric, Rates()).online_usd == 0


def test_a_batch_takes_up_to_a_day(tmp_path) -> None:
    asking, *_ = askings(config(tmp_path, transport="batch"), PROMPTS, None, (8, 8))
    assert bill(asking, Rates()).hours == 24


def test_what_a_run_has_measured_replaces_what_is_reckoned(tmp_path) -> None:
    rates = Rates(usage={"input_tokens": 700, "output_tokens": 90}, seconds_a_request=4)
    asking, _, scores = askings(config(tmp_path, concurrency=8), PROMPTS, HELD_OUT, (128, 64))
    found = bill(asking, rates)
    assert found.read == pytest.approx(6340 * 700 / 1e6)
    assert found.written == pytest.approx(6340 * 90 / 1e6)
    assert found.hours == pytest.approx(6340 * 4 / 8 / 3600)
    # A score is another question: what comparisons took says nothing about it.
    assert bill(scores, rates).written == 600 * 400 / 1e6
