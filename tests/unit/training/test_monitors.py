import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_dist.config import Train
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import first_loss, sigmoid_loss
from dpo_dist.training.monitors import MetricsWriter, Start, check_finite, check_start


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


@pytest.mark.parametrize(
    ("loss", "beta", "dtype", "passes"),
    [
        (0.749, 0.5, "bfloat16", True),  # half a nat of rounding in one of two pairs
        (0.749, 0.1, "bfloat16", False),
        (0.749, 0.5, "float32", False),
        (0.82, 0.5, "bfloat16", False),
        (0.72, 0.01, "bfloat16", False),
    ],
)
def test_what_rounding_makes_of_the_first_loss_grows_with_beta(
    loss: float, beta: float, dtype: str, passes: bool
) -> None:
    with nullcontext() if passes else pytest.raises(TrainingDiverged):
        check_start(loss, (0.0, 0.0), Train(beta=beta), dtype)


@pytest.mark.parametrize(
    ("rewards", "beta", "dtype", "passes"),
    [
        ((5.0, 5.0), 0.1, "float32", False),  # no margin, and so the loss of two equal models
        ((0.0, -0.003), 0.1, "float32", False),
        ((0.0015, 0.0015), 0.1, "float32", True),
        ((0.0, math.nan), 0.1, "float32", False),
        ((0.035, 0.03), 0.1, "bfloat16", True),  # a third of a nat of rounding
        ((0.05, 0.05), 0.1, "bfloat16", False),
        ((0.15, 0.15), 0.5, "bfloat16", True),
        ((0.05, 0.05), 10.0, "float32", True),  # 5e-3 nats, of which beta makes more
        ((0.5, 0.5), 10.0, "float32", False),
    ],
)
def test_the_first_rewards_are_held_to_0_also_where_the_loss_is_right(
    rewards: tuple[float, float], beta: float, dtype: str, passes: bool
) -> None:
    loss = math.log(2)
    settings = Train(beta=beta, loss={"sigmoid_norm": 1.0} if beta > 1 else "sigmoid")
    with nullcontext() if passes else pytest.raises(TrainingDiverged, match=r"rewards.*must be 0"):
        check_start(loss, rewards, settings, dtype)


def test_a_mixture_with_sft_is_gated_by_its_rewards() -> None:
    settings = Train(loss={"sigmoid": 1.0, "sft": 1.0})
    check_start(3.2, (0.001, -0.001), settings, "float32")
    with pytest.raises(TrainingDiverged, match=r"0\.50000 \(chosen\).*must be 0"):
        check_start(3.2, (0.5, 0.4), settings, "float32")


# log start/reference of two pairs: at beta 0.1 the rewards are 0.2 and -0.1, the margins 0.5, 0.1.
MOVED = Start(chosen=(3.0, 1.0), rejected=(-2.0, 0.0))
MOVED_LOSS = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-0.1))) / 2


def test_the_sigmoid_loss_is_that_of_the_paper_at_any_margin() -> None:
    assert sigmoid_loss([5.0, 1.0], 0.1) == pytest.approx(MOVED_LOSS)
    assert sigmoid_loss([0.0], 0.3) == pytest.approx(math.log(2))
    assert sigmoid_loss([-1e5], 0.1) == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("loss", "rewards", "message"),
    [
        (MOVED_LOSS, (0.2, -0.1), None),
        (MOVED_LOSS + 5e-4, (0.2015, -0.1), None),
        # What a training from its own reference would give.
        (math.log(2), (0.0, 0.0), r"reward of chosen answers is 0\.00000, but it must be 0\.2"),
        (MOVED_LOSS, (0.2, -0.103), r"reward of rejected answers is -0\.10300"),
        (MOVED_LOSS, (math.nan, -0.1), "chosen answers is nan"),
        # Means that are right, of pairs that are not.
        (MOVED_LOSS + 2e-3, (0.2, -0.1), r"first loss is 0\.\d+, but it must be 0\.55"),
    ],
)
def test_a_start_away_from_the_reference_has_a_gate_as_narrow(
    loss: float, rewards: tuple[float, float], message: str | None
) -> None:
    if message is None:
        check_start(loss, rewards, Train(), "float32", MOVED)
    else:
        with pytest.raises(TrainingDiverged, match=message):
            check_start(loss, rewards, Train(), "float32", MOVED)


def test_other_losses_are_held_to_the_rewards_of_their_start() -> None:
    settings = Train(loss={"hinge": 1.0})
    check_start(123.0, (0.2, -0.1), settings, "float32", MOVED)
    with pytest.raises(TrainingDiverged, match="the initial SFT model"):
        check_start(123.0, (0.1, -0.1), settings, "float32", MOVED)


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
