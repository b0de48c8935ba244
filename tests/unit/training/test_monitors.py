import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_dist.errors import TrainingDiverged
from dpo_dist.training.monitors import MetricsWriter, check_finite


def test_a_value_that_is_not_finite_is_blamed_on_its_rows() -> None:
    check_finite("loss", [0.1, 0.2], 3)
    with pytest.raises(TrainingDiverged, match=r"loss is inf at step 3, in rows a, b\."):
        check_finite("loss", [0.1, math.inf], 3, ["a", "b"])


def log(writer: MetricsWriter, step: int, **logs: float) -> None:
    state = SimpleNamespace(global_step=step, epoch=0.5, max_steps=9)
    writer.on_log(SimpleNamespace(device=None), state, None, logs=logs)


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", "train")
    with pytest.raises(TrainingDiverged, match="loss is nan at step 3"):
        log(writer, 3, loss=math.nan)
    with pytest.raises(TrainingDiverged, match="grad_norm is inf"):
        log(writer, 3, loss=0.5, grad_norm=math.inf)


def test_a_resumed_training_forgets_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, "train")
    for step in (1, 2, 3):
        log(writer, step, loss=0.5)
    path.write_text(path.read_text() + '{"step": 4, "lo')
    state = SimpleNamespace(global_step=2, max_steps=9)
    writer.on_train_begin(None, state, None)
    log(writer, 3, loss=0.4)
    writer.on_train_end(None, state, None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 0.4)]
