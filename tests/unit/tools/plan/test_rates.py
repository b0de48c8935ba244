"""Rates of a finished run, from the files that its phases leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_dist.config import Config, Lora, Model
from dpo_dist.data.rows import write_parquet
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.throughput import Pair, training_flops
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.records import Ballot, Candidate
from dpo_dist.tools.plan.rates import calibrate

SHAPE = preset_shape("SmolLM2-135M")
CONFIG = Config.model_validate(
    {
        "run": {"name": "small"},
        "model": {"base": "owner/SmolLM2-135M"},
        "sample": {"prompts": {"path": "p.jsonl"}, "engine": {"type": "vllm"}},
        "judge": {
            "judge": {
                "type": "claude",
                "model": "claude-opus-4-7",
                "rubric": "r.md",
                "concurrency": 4,
            }
        },
        "train": {"method": {"type": "lora", "r": 8}},
    }
)


def finish(root: Path, phase: str, **result: object) -> Path:
    """A phase's directory as it is when the phase has ended."""
    origin = {"seed": 17, "versions": {}, "git": None, "config": CONFIG.dump()}
    counts = {"in": 10, "kept": 8}
    manifest = {"phase": phase, "counts": counts, "wall_seconds": 10.0, **result, **origin}
    write_json(root / phase / "fingerprint.json", {})
    write_json(root / phase / "manifest.json", manifest)
    return root / phase


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two engines wrote candidates of 10 and 30 tokens; 8 of 10 prompts became pairs; a ballot took
    900 tokens and, of four workers, 5 seconds; two processes trained 1,300 tokens a second."""
    root = tmp_path / "small"
    written = {"candidates": 20, "cut_off": 0, "engines": ["e"], "tokens_per_second": 500.0}
    sample = finish(root, "sample", **written)
    for shard in range(2):
        write_json(sample / f"pace-{shard}-of-2.json", {})
    same = {"prompt_id": "a", "text": "", "finish_reason": "stop", "settings": {}, "engine": "e"}
    lengths = enumerate((10, 30))
    candidates = [Candidate(slot=n, token_ids=(7,) * tokens, **same) for n, tokens in lengths]
    write_records(sample / "candidates.jsonl", candidates)
    empty = {"spend": None, "refusals": {}, "audit": [], "canaries": []}
    judge = finish(root, "judge", judge="j", **empty)
    ballot = {"key": "k", "prompt_id": "a", "first": "slot-0", "second": "slot-1"}
    ballot |= {"outcome": "first", "judge": "j"}
    paid = {"input_tokens": 800, "output_tokens": 100, "attempts": 1}
    ballots = [Ballot(**ballot, usage=usage) for usage in [paid] * 8 + [{}] * 4]
    write_records(judge / "ballots.jsonl", ballots)
    outcome = {"steps": 3, "selected_step": 3, "peak_rss_bytes": 0}
    pairs = {"train": 4, "validation": 0}
    train = finish(root, "train", pairs=pairs, reference="base", processes=2, **outcome)
    row = {"prompt_ids": [1] * 50, "chosen_ids": [1] * 100, "rejected_ids": [1] * 60}
    write_parquet(train / "tokens" / "train.parquet", [row] * 4)
    rates = (1300.0, 900.0, 9000.0)  # the median counts: a first step is slow
    lines = [{"step": n, "tokens_per_second": rate} for n, rate in enumerate(rates)]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_a_finished_run_s_rates(run: Path) -> None:
    rates = calibrate(run, CONFIG.model, SHAPE)
    assert rates.candidate_tokens == 20
    assert rates.answer_tokens is None and rates.evaluation is None  # it was not evaluated
    assert rates.kept == 0.8
    assert rates.sampling == 250  # of one engine
    assert rates.usage == {"input_tokens": 800, "output_tokens": 100}
    assert rates.seconds_per_request == 10 * 4 / 8  # reused ballots took no time
    pairs_a_second = 1300 / (50 + 100 + 60)
    flops = training_flops(SHAPE, Lora(r=8), Pair(50, 100, 60))
    assert rates.training == pytest.approx(pairs_a_second * flops / 2)
    assert rates.utilization(find_cluster("L4-24G")) == pytest.approx(rates.training / 121e12)
    assert replace(rates, training=None).utilization(find_cluster("L4-24G")) == 0.35


def test_a_run_of_another_model_is_refused(run: Path) -> None:
    other = Model(base="owner/Llama-3.1-8B")
    with pytest.raises(ConfigError, match="its rates do not apply"):
        calibrate(run, other, SHAPE)
