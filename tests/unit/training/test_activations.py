from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import ConfigError
from dpo_dist.training.activations import choose_checkpointing
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from tests.conftest import ROOT
from tests.training_jobs import training_job

PLAN = {"none": 900, "selective": 500, "full": 300}


def job(**settings: Any) -> TrainingJob:
    return training_job(
        Path("out"),
        settings=Train(learning_rate=1e-3, **settings),
        dtype="bfloat16",
        planned_peak_bytes=PLAN,
    )


@pytest.mark.parametrize(
    ("free", "chosen"), [(2000, "none"), (1000, "selective"), (400, "full"), (10, "full")]
)
def test_auto_is_the_first_that_fits_with_room_to_spare(
    free: int, chosen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_checkpointing(job(), free) == chosen
    assert (f"activation checkpointing: {chosen}" in capsys.readouterr().err) == (chosen != "none")


def test_what_is_asked_for_is_done() -> None:
    assert choose_checkpointing(job(gradient_checkpointing="none"), 10) == "none"


def test_zero3_knows_no_selective_checkpointing() -> None:
    zero3 = {"shape": LaunchShape(processes=2, zero_stage=3)}
    assert choose_checkpointing(job().model_copy(update=zero3), 1000) == "full"
    with pytest.raises(ConfigError, match="ZeRO-3"):
        selective = job(gradient_checkpointing="selective")
        choose_checkpointing(selective.model_copy(update=zero3), 1000)


RANK = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from dpo_dist.training.activations import choose_checkpointing
from dpo_dist.training.worker import end_process
from tests.unit.training.test_activations import job

PartialState(cpu=True, backend="gloo")
free = {"0": 2000, "1": 1000}[os.environ["RANK"]]
Path(sys.argv[1], os.environ["RANK"]).write_text(choose_checkpointing(job(), free))
end_process(0)
"""


def test_ranks_that_have_not_the_same_memory_choose_the_same(tmp_path: Path) -> None:
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port.getsockname()[1])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            cwd=ROOT,
            env=os.environ
            | address
            | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    chosen = [(tmp_path / rank).read_text() for rank in "01"]
    assert chosen == ["selective", "selective"], "rank 0 alone would choose none"
