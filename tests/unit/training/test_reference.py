"""The log-probs of the reference: their cache, and the pass for a reference which training does not
start from."""

import fcntl
from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.training import reference
from dpo_dist.training.job import InitialReference, TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from dpo_dist.training.reference import (
    ReferenceCache,
    ReferenceLogProbs,
    reference_job,
    reference_key,
    row_key,
)
from tests.conftest import ROOT
from tests.console_text import without_times
from tests.training_jobs import training_job

WEIGHTS = {"model": "a", "adapter": None}


def test_the_key_moves_with_the_weights_and_with_nothing_else_of_a_sweep() -> None:
    key = reference_key(WEIGHTS, "bfloat16", None)
    assert key == reference_key(dict(WEIGHTS), "bfloat16", None)
    others = {
        reference_key({**WEIGHTS, "adapter": "b"}, "bfloat16", None),
        reference_key({**WEIGHTS, "model": "b"}, "bfloat16", None),
        reference_key(WEIGHTS, "float32", None),
        reference_key(WEIGHTS, "bfloat16", 0.5),
    }
    assert len(others) == 4 and key not in others


def test_a_row_is_its_tokens_and_where_they_are_cut() -> None:
    assert row_key([1, 2], [3], [4]) == row_key((1, 2), (3,), (4,))
    assert row_key([1, 2], [3], [4]) != row_key([1], [2, 3], [4])
    assert row_key([1, 2], [3], [4]) != row_key([1, 2], [4], [3])


def test_values_come_back_to_the_last_bit_and_a_torn_line_is_forgotten(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path / "folder" / "key.jsonl")
    assert cache.read() == {}
    value = ReferenceLogProbs(row="r", chosen=-123.45678710937501, rejected=-1e-7)
    with cache.locked(bool), cache.journal() as journal:
        journal.append([value])
    path = tmp_path / "folder" / "key.jsonl"
    path.write_bytes(path.read_bytes() + b'{"row": "torn", "cho')
    cache.journal().close()
    assert cache.read() == {"r": value}


def is_locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_all_ranks_wait_together_for_another_run_and_say_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, other = ReferenceCache(tmp_path / "key.jsonl"), (tmp_path / "key.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            other.close()

    monkeypatch.setattr(reference.time, "sleep", sleep)
    met: list[bool] = []
    with cache.locked(lambda taken: met.append(taken) or taken):
        assert met == [False, False, False, True], "nobody waits where the others cannot see it"
        assert is_locked(tmp_path / "key.lock")
    assert not is_locked(tmp_path / "key.lock")
    said = without_times(capsys.readouterr().err)
    assert said == f"waiting for another run that computes the reference ({tmp_path}/key.jsonl)"


def test_a_rank_without_the_lock_goes_by_what_rank_0_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    cache, answers = ReferenceCache(tmp_path / "key.jsonl"), iter([False, True])
    monkeypatch.setattr(reference.time, "sleep", lambda _: None)
    with cache.locked(lambda taken: not taken and next(answers)):
        assert not is_locked(tmp_path / "key.lock")
    assert next(answers, None) is None


def job(tmp_path: Path) -> TrainingJob:
    settings = Train(
        global_batch_size=16,
        micro_batch_size=2,
        accelerate_config=ROOT / "accelerate_configs" / "cpu_zero2.yaml",
        select="best",
    )
    return training_job(
        tmp_path / "train",
        settings=settings,
        shape=LaunchShape.read(settings.accelerate_config),
        model="base",
        adapter=tmp_path / "round-1",
        rows=tmp_path / "train.parquet",
        validation_rows=tmp_path / "validation.parquet",
        reference_folder=tmp_path / "logps",
        start={"adapter": "one"},
        reference=InitialReference(
            model="base", adapter=tmp_path / "sft", identity={"adapter": "sft"}
        ),
    )


def test_the_pass_starts_from_the_reference_and_takes_one_micro_batch(tmp_path: Path) -> None:
    whole = job(tmp_path)
    own = reference_job(whole)
    assert TrainingJob.model_validate_json(own.model_dump_json()) == own
    assert (own.kind, own.adapter, own.start) == ("reference", tmp_path / "sft", {"adapter": "sft"})
    assert own.reference is None and own.out == tmp_path / "train" / "reference"
    assert (own.rows, own.validation_rows) == (whole.rows, whole.validation_rows)
    assert own.reference_folder == whole.reference_folder
    assert own.settings.global_batch_size == 2 * 2, "a micro-batch for each of two processes"
