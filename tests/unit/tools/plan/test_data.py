"""How much data a run file asks for: counted, given, stated or not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic_pairs import log_normal_lengths
from dpo_dist.config import Config, DataSource, VllmEngine
from dpo_dist.estimates.throughput import Pair
from dpo_dist.runs.run import Run
from dpo_dist.tools.plan.data import (
    Answering,
    Given,
    Pairs,
    Quantity,
    demonstrations_of,
    pairs_of,
    prompts_of,
)


def run(preferences: dict, **sections: object) -> Run:
    values = {
        "run": {"name": "test"},
        "model": {"base": "owner/model"},
        "preferences": preferences,
        "train": {"max_length": 1024, "global_batch_size": 16},
        **sections,
    }
    return Run(Config.model_validate(values))


def pairs(preferences: dict, given: Given = Given(), **sections: object) -> Pairs:  # noqa: B008
    found = pairs_of(run(preferences, **sections), given)
    assert found is not None
    return found


def test_prompts_are_counted_and_tokenized(tmp_path: Path, write_jsonl, tiny_model: Path) -> None:
    rows = [{"prompt": "x" * n} for n in (10, 20, 60)]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    found = prompts_of(DataSource(path=path), None, str(tiny_model))
    # The tiny tokenizer has a token a byte; its template adds `user`, `assistant` and their marks.
    frame = len("user\n") + len("\n") + len("assistant\n") + 3
    assert found is not None
    assert (found.count.value, found.count.source) == (3, "counted")
    assert found.prompt == 30 + frame
    assert found.longest == (60 + frame,)
    assert (found.source, found.how) == ("counted", "3 rows tokenized")


def test_without_a_tokenizer_four_characters_are_a_token(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x" * 40, "completion": "y" * 80}])
    found = demonstrations_of(DataSource(path=path), "owner/model")
    assert found is not None
    assert (found.prompt, found.completions, found.tokens) == (10, (20,), 30)
    assert (found.source, found.how) == ("assumed", "4 characters per token")


def test_what_is_elsewhere_is_not_fetched() -> None:
    hub = DataSource(dataset="owner/data", split="train")
    assert prompts_of(hub, None, "owner/model") is None
    assert demonstrations_of(hub, "owner/model") is None
    given = prompts_of(hub, 500, "owner/model")
    assert given is not None and (given.count.value, given.count.note) == (500, "--prompts")
    limited = prompts_of(hub.model_copy(update={"limit": 100}), None, "owner/model")
    assert limited is not None and limited.count.value == 100


def test_pairs_of_a_file_are_those_that_are_trained_on(tmp_path: Path, write_jsonl) -> None:
    rows = [
        {"prompt": f"{n:03d}" + "q" * 77, "chosen": f"{n:03d}" + "c" * 157, "rejected": "r" * 240}
        for n in range(20)
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", [*rows, rows[0]])
    preferences = {"source": "path", "path": str(path), "validation_fraction": 0.25}
    found = pairs(preferences)
    assert (found.count.value, found.validation) == (15, 5)
    assert found.mean == Pair(20, 40, 60) == found.longest


def test_no_pair_is_longer_than_max_length_lets_in(tmp_path: Path, write_jsonl) -> None:
    row = {"prompt": "q" * 800, "chosen": "c" * 40_000, "rejected": "r" * 400}
    path = write_jsonl(tmp_path / "pairs.jsonl", [row])
    preferences = {"source": "path", "path": str(path), "validation_fraction": 0}
    assert pairs(preferences).longest == Pair(200, 1024 - 200, 100)


def test_ultrafeedback_has_its_stated_size() -> None:
    found = pairs({"source": "ultrafeedback"})
    assert (found.count.value, found.count.source, found.validation) == (61_000, "stated", 500)
    assert found.mean.prompt / found.mean.chosen == pytest.approx(0.42)
    assert found.longest.prompt + found.longest.chosen == 1024
    assert pairs({"source": "ultrafeedback", "limit": 900}).count.value == 900


def test_ultrafeedback_s_mean_is_that_of_its_synthetic_twin_not_its_median() -> None:
    """Lengths are skewed: the median pair has 16 % fewer tokens than the mean one."""
    lengths = log_normal_lengths(61_000, np.random.default_rng(0))
    mean = pairs({"source": "ultrafeedback"}).mean
    for tokens, column in zip((mean.prompt, mean.chosen, mean.rejected), lengths.T, strict=True):
        assert tokens == pytest.approx(column.mean(), rel=0.02)
    assert np.median(lengths[:, 0] + lengths[:, 1]) == pytest.approx(409, rel=0.02)
    # As the dataset's card counts the bytes of a row: four prompts, two chosen, one rejected.
    a_row = 4 * (4 * mean.prompt + 2 * mean.chosen + mean.rejected)
    assert a_row == pytest.approx(405_688_662 / 61_135, rel=0.03)


def test_no_mean_pair_is_longer_than_max_length_lets_in() -> None:
    short = {"max_length": 256, "global_batch_size": 16}
    found = pairs({"source": "ultrafeedback"}, train=short)
    assert found.mean == found.longest == Pair(128, 128, 128)


def test_the_command_line_says_what_is_not_known() -> None:
    found = pairs({"source": "ultrafeedback"}, Given(pairs=5000, tokens_per_pair=484))
    assert (found.count.value, found.count.source) == (5000, "given")
    assert found.mean == Pair(84, 200, 200)


def test_a_judged_prompt_makes_a_pair_as_often_as_was_measured(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x" * 400}] + [{"prompt": "y" * 40}] * 1)
    judged = run(
        {"source": "judged", "validation_fraction": 0.5},
        sample={"prompts": {"path": str(path)}, "engine": {"type": "hf"}, "max_new_tokens": 300},
        judge={"judge": {"type": "human", "sheet": "s.csv"}},
    )
    prompts = prompts_of(DataSource(path=path), None, "owner/model")
    assert prompts is not None
    engine = VllmEngine(type="vllm")
    sampling = Answering("sample", prompts, 2, Quantity(50, "measured"), engine)
    found = pairs_of(judged, Given(), sampling)
    assert found is not None
    assert (found.count.value, found.validation) == (1, 1)
    assert found.mean == Pair(55, 50, 50)
    assert found.longest == Pair(100, 300, 300)  # answers may be as long as is allowed
    assert pairs_of(judged, Given()) is None
