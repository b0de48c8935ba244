"""The large recipe's way from the dataset to its eight GPUs, at a small scale.

`python -m benchmarks.preferences` does the same with 61,000 pairs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from benchmarks.preferences import deal_an_epoch, do_the_phase, held_out, imbalance, recipe_on
from benchmarks.synthetic_pairs import TEST_PAIRS, log_normal_lengths, make_dataset
from dpo_dist.phases import train
from dpo_dist.training.sampler import GlobalBatchSampler
from tests.conftest import ROOT

PAIRS = 2_000


@pytest.fixture
def _no_progress_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_progress_bars")
def test_two_thousand_pairs_reach_the_ranks_and_only_the_faulty_ones_do_not(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("launch", "load_preferences", "write_token_rows"):
        monkeypatch.setattr(train, name, getattr(train, name))  # put back: the phase is timed
    config = recipe_on(tmp_path / "dataset", tiny_model, tmp_path / "runs")
    # Letters are tokens to the tiny model: shorter texts make pairs of the real ones' tokens.
    planted = make_dataset(
        tmp_path / "dataset",
        [f"{number:04}" for number in range(4_000)],
        PAIRS,
        held_out=held_out(config),
        measure=lambda pairs, draw: np.maximum(log_normal_lengths(pairs, draw) // 5, (8, 2, 2)),
    )
    _, job, dropped = do_the_phase(config)
    too_long = dropped.pop("too_long", 0) + dropped.pop("prompt_too_long", 0)
    assert dropped == planted
    assert dropped["contradiction"] == 20 and dropped["evaluation_overlap"] == 510
    rows = datasets.Dataset.from_parquet(str(job.rows))
    validation = datasets.Dataset.from_parquet(str(job.validation_rows))
    assert len(rows) + len(validation) == PAIRS + 1_000 - planted.total() - too_long
    assert not {name for name in rows["id"] if not name.startswith("train-")}
    assert set(validation["id"]) <= {f"test-{number}" for number in range(500, TEST_PAIRS)}
    figures = deal_an_epoch(job)  # it checks that every pair comes once
    assert figures["imbalance of a step, median %"] < 5
    assert figures["packed positions, of padded ones"] < 0.7


def test_the_ranks_of_a_step_have_about_the_same_number_of_tokens() -> None:
    lengths = log_normal_lengths(PAIRS, np.random.default_rng(0)).sum(1).tolist()
    dealt = [
        list(
            GlobalBatchSampler(
                lengths,
                global_batch_size=128,
                micro_batch_size=2,
                world_size=8,
                rank=rank,
                seed=17,
            )
        )
        for rank in range(8)
    ]
    times = Counter(row for batches in dealt for batch in batches for row in batch)
    assert set(times) == set(range(PAIRS)) and times.total() == 2_048
    figures = imbalance(dealt, lengths, accumulation=8)
    assert figures["imbalance of a step, median %"] < 5
    in_order = [
        [list(range(start, start + 2)) for start in range(2 * rank, PAIRS, 16)] for rank in range(8)
    ]
    unsorted = imbalance(in_order, lengths, accumulation=8)
    assert unsorted["imbalance of a step, median %"] > 15, "which is what there is to balance"
