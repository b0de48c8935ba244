"""The pass that computes the log-probs of a reference which training does not start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import Preempted
from dpo_dist.storage.artifacts import write_json
from dpo_dist.training import reference_pass
from dpo_dist.training.job import OUTCOME, STOP, InitialReference, TrainingJob
from dpo_dist.training.reference_pass import compute_reference, reference_job
from tests.conftest import ROOT


def job(tmp_path: Path) -> TrainingJob:
    settings = Train(
        global_batch_size=16,
        micro_batch_size=2,
        accelerate_config=ROOT / "accelerate_configs" / "cpu_zero2.yaml",
        select="best",
    )
    return TrainingJob(
        kind="dpo",
        settings=settings,
        model="base",
        adapter=tmp_path / "round-1",
        dtype="float32",
        rows=tmp_path / "train.parquet",
        validation_rows=tmp_path / "validation.parquet",
        reference_folder=tmp_path / "logps",
        start={"adapter": "one"},
        reference=InitialReference(
            model="base", adapter=tmp_path / "sft", identity={"adapter": "sft"}
        ),
        planned_peak_bytes={},
        out=tmp_path / "train",
        seed=1,
        run_name="r",
    )


def test_it_starts_from_the_reference_and_takes_one_micro_batch(tmp_path: Path) -> None:
    whole = job(tmp_path)
    own = reference_job(whole)
    assert TrainingJob.model_validate_json(own.model_dump_json()) == own
    assert (own.kind, own.adapter, own.start) == ("reference", tmp_path / "sft", {"adapter": "sft"})
    assert own.reference is None and own.out == tmp_path / "train" / "reference"
    assert (own.rows, own.validation_rows) == (whole.rows, whole.validation_rows)
    assert own.reference_folder == whole.reference_folder
    assert own.settings.global_batch_size == 2 * 2, "a micro-batch for each of two processes"


def test_a_stopped_pass_does_not_go_on_to_train_and_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[TrainingJob] = []

    def launch(own: TrainingJob, leader: None) -> None:
        launched.append(own)
        write_json(own.out / OUTCOME, {"rows": 1})
        (own.out / STOP).touch()

    monkeypatch.setattr(reference_pass, "launch", launch)
    with pytest.raises(Preempted, match="before its first step"):
        compute_reference(job(tmp_path))
    compute_reference(job(tmp_path))
    assert len(launched) == 1
