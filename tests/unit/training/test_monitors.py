import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import first_loss
from dpo_dist.training.monitors import MetricsWriter, check_finite, check_start


def test_the_first_loss_follows_from_the_equations() -> None:
    assert first_loss({"sigmoid": 1.0}, 0.1, 0) == pytest.approx(0.693147, abs=1e-6)
    assert first_loss({"robust": 1.0}, 0.1, 0.1) == pytest.approx(math.log(2))
    assert first_loss({"hinge": 0.5, "sigmoid": 1.0}, 0.1, 0) == pytest.approx(0.5 + math.log(2))
    assert first_loss({"ipo": 1.0}, 0.1, 0) == pytest.approx(25.0)
    assert first_loss({"sigmoid": 1.0, "sft": 0.1}, 0.1, 0) is None


@pytest.mark.parametrize(
    ("loss", "dtype", "passes"),
    [
        (0.6931, "float32", True),
        (0.6950, "float32", False),
        (0.7100, "bfloat16", True),
        (0.7200, "bfloat16", False),
        (0.6600, "bfloat16", False),
        (math.nan, "bfloat16", False),
    ],
)
def test_the_gate_closes_outside_its_tolerance(loss: float, dtype: str, passes: bool) -> None:
    if passes:
        check_start(loss, (0.0, 0.0), Train(), dtype)
    else:
        with pytest.raises(TrainingDiverged, match=r"must be 0\.69315.*reference is the base"):
            check_start(loss, (0.0, 0.0), Train(), dtype)


def test_a_mixture_with_sft_is_gated_by_its_rewards() -> None:
    settings = Train(loss={"sigmoid": 1.0, "sft": 1.0})
    check_start(3.2, (0.001, -0.001), settings, "float32")
    with pytest.raises(TrainingDiverged, match=r"0\.50000 \(chosen\).*must be 0"):
        check_start(3.2, (0.5, 0.4), settings, "float32")


def test_a_value_that_is_not_finite_is_blamed_on_its_rows() -> None:
    check_finite("loss", [0.1, 0.2], 3)
    with pytest.raises(TrainingDiverged, match=r"loss is inf at step 3, from the rows a, b\."):
        check_finite("loss", [0.1, math.inf], 3, ["a", "b"])


def log(writer: MetricsWriter, step: int, **logs: float) -> None:
    state = SimpleNamespace(global_step=step, epoch=0.5, max_steps=9)
    writer.on_log(None, state, None, logs=logs)


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
