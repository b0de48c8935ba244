"""What judges are asked and what that costs: by hand, and never 0 where a price is unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import BilledJudge, Config, FunctionJudgeConfig, OpenAiConfig, VllmEngine
from dpo_dist.config.judging import JudgeResource
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.rubric import COMPARE
from dpo_dist.runs.run import Run
from dpo_dist.storage.records import Prompt
from dpo_dist.tools.plan.data import Answering, Quantity, Texts
from dpo_dist.tools.plan.judging import Asking, UsdByTransport, askings, bill
from dpo_dist.tools.plan.rates import Rates
from dpo_dist.tools.plan.subject import PlannedWork

PROMPTS = Texts(Quantity(1000, "counted"), prompt=100.0)
HELD_OUT = Texts(Quantity(200, "counted"), prompt=50.0)
PRICES = """as_of = 2026-01-01
[models.m]
input = 0
output = 1000
cache_write = 0
cache_read = 0
request = 0.003
"""


def asked(tmp_path: Path, model: str = "claude-opus-4-7", **judge: object) -> list[Asking]:
    """Candidates of 128 tokens and answers of 64 are judged."""
    (tmp_path / "rubric.md").write_text("r" * 350)
    claude = {"type": "claude", "model": model, "rubric": str(tmp_path / "rubric.md"), **judge}
    config = Config.model_validate(
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
    engine = VllmEngine(type="vllm")
    work = PlannedWork(run=Run(config))
    assert list(askings(work)) == []  # it is not known how many prompts there are
    sampling = Answering("sample", PROMPTS, 3, Quantity(128, "measured"), engine)
    evaluation = Answering("evaluate", HELD_OUT, 3, Quantity(64, "measured"), engine)
    return list(askings(replace(work, sampling=sampling, evaluation=evaluation)))


def test_every_comparison_is_asked_in_both_orders_repeats_and_canaries_too(tmp_path) -> None:
    labels, pairwise, scores = asked(tmp_path)
    # Three pairs of three slots, two orders and a tenth again; five kinds of four canaries twice.
    assert labels.requests == 1000 * 3 * 2.1 + 2 * 5 * 4
    assert (labels.prompt, labels.answers) == (100, 256)
    assert (pairwise.requests, pairwise.answers) == (200 * 3 * 2, 128)  # base, sft, dpo
    assert (scores.requests, scores.answers) == (200 * 3, 64)


def test_a_bill_is_the_price_table_s_and_a_batch_half_of_it(tmp_path) -> None:
    asking, *_ = asked(tmp_path, concurrency=10)
    found = bill(asking, Rates())
    count = 6340
    frame = len(COMPARE.question(Comparison(Prompt(id="-", messages=()), "a", "b", "", "")))
    read = count * (100 + 256 + frame / 3.5) + count * 100  # the rubric's 350 characters
    assert found.million_tokens_read == pytest.approx(read / 1e6, rel=1e-5)
    assert found.million_tokens_written == count * 400 / 1e6
    assert found.usd.online == pytest.approx(
        5 * found.million_tokens_read + 25 * found.million_tokens_written
    )
    assert found.usd.batch == pytest.approx(found.usd.online / 2)
    assert found.hours == pytest.approx(count * 10 / 10 / 3600)


def test_an_unknown_price_is_none_and_a_free_judge_is_free(tmp_path) -> None:
    asking, metric, _ = asked(tmp_path, "claude-of-tomorrow")
    found = bill(asking, Rates())
    assert found.usd == UsdByTransport(None, None)
    assert found.million_tokens_read > 0
    assert bill(metric, Rates()).usd == UsdByTransport(0, 0)


def test_every_judge_is_billed_by_what_it_declares(tmp_path) -> None:
    (tmp_path / "rubric.md").write_text("r" * 350)
    (tmp_path / "prices.toml").write_text(PRICES)

    def costs(judge: JudgeResource) -> UsdByTransport:
        return bill(Asking("judge", judge, COMPARE, 1000, 100, 256), Rates()).usd

    class Unheard(BilledJudge):
        @property
        def paid(self) -> bool:
            return True

        @property
        def price_table(self) -> Path:
            return tmp_path / "prices.toml"

    values: dict[str, Any] = {"type": "function", "path": Path("my_judge:prefer")}
    assert costs(FunctionJudgeConfig(**values)) == UsdByTransport(0, 0)
    assert costs(FunctionJudgeConfig(**values, price=0.02)) == UsdByTransport(20, None)
    assert costs(Unheard(type="unheard_of:m")) == UsdByTransport(None, None)
    values = {"type": "openai_compatible", "model": "m", "base_url": "http://localhost/v1"}
    values["rubric"] = tmp_path / "rubric.md"
    assert costs(OpenAiConfig(**values)) == UsdByTransport(None, None)
    assert costs(OpenAiConfig(**values, prices=tmp_path / "prices.toml")).online == 400.0 + 3


def test_a_batch_takes_up_to_a_day(tmp_path) -> None:
    asking, *_ = asked(tmp_path, transport="batch")
    assert bill(asking, Rates()).hours == 24


def test_what_a_run_has_measured_replaces_what_is_assumed(tmp_path) -> None:
    rates = Rates(usage={"input_tokens": 700, "output_tokens": 90}, seconds_per_request=4)
    asking, _, scores = asked(tmp_path, concurrency=8)
    found = bill(asking, rates)
    assert found.million_tokens_read == pytest.approx(6340 * 700 / 1e6)
    assert found.million_tokens_written == pytest.approx(6340 * 90 / 1e6)
    assert found.hours == pytest.approx(6340 * 4 / 8 / 3600)
    # A score is another question: what comparisons took says nothing about it.
    assert bill(scores, rates).million_tokens_written == 600 * 400 / 1e6
