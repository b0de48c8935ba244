"""Each alarm: raised when it must be, silent when it must be, said once per kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import TrainerControl, TrainerState

from dpo_dist.config import KlMonitor, Train
from dpo_dist.training.alarms import (
    TRAIN_WINDOW,
    Alarms,
    displacement,
    gap,
    over_budget,
    raised,
    saturation,
)

CHOSEN = "eval_logps/chosen_per_token"


@pytest.mark.parametrize(
    ("values", "alarm"),
    [
        ((-1.0,), False),
        ((-1.0, -1.09), False),
        ((-1.0, -1.11), True),
        ((-1.0, -0.5), False),
        ((-1.0, -0.5, -1.05), False),  # from the first evaluation, not from the best
        ((-1.0, -1.3, -1.05), False),  # recovered
    ],
)
def test_displacement_is_a_fall_from_the_first_evaluation(
    values: tuple[float, ...], alarm: bool
) -> None:
    found = displacement([{"loss": 0.6}, *({CHOSEN: value} for value in values)])
    assert (found is not None) == alarm
    if found:
        assert "lost 0.11 nats per token" in found.message
        assert "raise beta" in found.message


def test_displacement_speaks_on_evaluations_only() -> None:
    assert displacement([{CHOSEN: -1.0}, {CHOSEN: -2.0}, {"loss": 0.6}]) is None
    # The sum over tokens is no measure: it falls with the answers' lengths.
    assert displacement([{"eval_logps/chosen": -100.0}, {"eval_logps/chosen": -200.0}]) is None


@pytest.mark.parametrize(
    ("accuracy", "loss", "alarm"),
    [(1.0, 0.01, True), (0.99, 0.049, True), (1.0, 0.3, False), (0.9, 0.01, False)],
)
def test_validation_is_saturated_when_accuracy_and_loss_say_so(
    accuracy: float, loss: float, alarm: bool
) -> None:
    found = saturation([{"eval_rewards/accuracies": accuracy, "eval_loss": loss}], Train())
    assert (found is not None) == alarm


def test_the_training_loss_is_saturated_over_a_window() -> None:
    low = [{"loss": 0.04}] * TRAIN_WINDOW
    assert "0.040 over the last 10" in saturation(low, Train()).message
    assert saturation(low[1:], Train()) is None, "a few lucky batches are none"
    assert saturation([*low[1:], {"loss": 0.3}], Train()) is None
    assert saturation([*low, {"eval_loss": 0.7}], Train()) is None


def test_saturation_is_relative_to_the_loss_at_margin_zero() -> None:
    """IPO begins at 1 / (2 beta)^2 = 25: a loss of 1 is as near to its end as 0.03 is for DPO."""
    lines = [{"loss": 1.0}] * TRAIN_WINDOW
    assert saturation(lines, Train(loss="ipo", beta=0.1)) is not None
    assert saturation([{"loss": 2.0}] * TRAIN_WINDOW, Train(loss="ipo", beta=0.1)) is None
    assert saturation(lines, Train(loss="hinge")) is None


def accuracies(train: float, validation: float, evaluations: int) -> list[dict]:
    return [{"rewards/accuracies": train}] * TRAIN_WINDOW + [
        {"eval_rewards/accuracies": validation}
    ] * evaluations


def test_a_gap_is_averaged_on_both_sides() -> None:
    found = gap(accuracies(0.9, 0.7, 3))
    assert "0.90 on training and 0.70 on validation" in found.message
    assert gap(accuracies(0.8, 0.7, 3)) is None
    assert gap(accuracies(0.9, 0.7, 2)) is None, "two evaluations are noise"
    assert gap(accuracies(0.9, 0.7, 3)[1:]) is None
    assert gap(accuracies(0.7, 0.9, 3)) is None, "validation ahead of training is no harm"
    one_bad = [*accuracies(0.8, 0.75, 2), {"eval_rewards/accuracies": 0.6}]
    assert gap(one_bad) is None
    assert gap([*accuracies(0.9, 0.7, 3), {"rewards/accuracies": 0.9}]) is None


def test_the_budget_is_compared_with_the_kl_on_the_policy_s_answers() -> None:
    budget = KlMonitor(budget=0.2)
    found = over_budget([{"kl/per_token": 0.25, "kl/per_token_se": 0.03}], budget)
    assert (
        "0.250 ± 0.059 (95 % interval) nats per token" in found.message
        and "budget 0.2" in found.message
    )
    assert "±" not in over_budget([{"kl/per_token": 0.25}], budget).message
    assert over_budget([{"kl/per_token": 0.15}], budget) is None
    assert over_budget([{"kl/per_token": 5.0}], KlMonitor()) is None
    assert over_budget([{"kl/per_token": 5.0}, {"loss": 0.5}], budget) is None


def test_log_ratios_of_the_pairs_are_no_kl() -> None:
    """Margins and log-ratios far above the budget, a KL far below it, and the reverse."""
    settings = Train(kl=KlMonitor(budget=0.2))
    pairs = {"rewards/margins": 90.0, "rewards/chosen": 40.0, "logps/chosen": -900.0, "loss": 0.3}
    assert raised([pairs, {f"eval_{name}": value for name, value in pairs.items()}], settings) == []
    assert raised([pairs, {"kl/per_token": 0.01, "kl/per_sequence": 3.0}], settings) == []
    still = {"rewards/margins": 0.0, "loss": 0.69}
    alarms = raised([still, {"kl/per_token": 0.3}], settings)
    assert [alarm.kind for alarm in alarms] == ["kl_budget"]


def test_a_healthy_training_is_silent() -> None:
    lines: list[dict] = []
    for step in range(60):
        lines.append({"loss": 0.69 - step / 300, "rewards/accuracies": 0.5 + step / 200})
        assert raised(lines, Train(kl=KlMonitor(budget=0.5))) == []
        if step % 10 == 9:
            line = {"eval_loss": 0.65, "eval_rewards/accuracies": 0.5 + step / 220}
            lines.append(line | {CHOSEN: -1.0 - step / 1000, "kl/per_token": step / 1000})
            assert raised(lines, Train(kl=KlMonitor(budget=0.5))) == []


class Training:
    """The callback as transformers drives it, with its own state and control."""

    def __init__(self, path: Path, kl: KlMonitor, step: int = 0) -> None:
        self.path = path
        self.alarms = Alarms(path, Train(kl=kl))
        self.control = TrainerControl()
        self.alarms.on_train_begin(None, TrainerState(global_step=step), self.control)

    def log(self, step: int, **logs: float) -> None:
        """What MetricsWriter writes, and what transformers then calls."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **logs}) + "\n")
        self.alarms.on_log(None, TrainerState(global_step=step), self.control, logs=logs)

    def alarm_lines(self) -> list[dict]:
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in lines if "alarm" in line]


def test_each_kind_is_said_once_and_written(tmp_path: Path, capsys) -> None:
    training = Training(tmp_path / "metrics.jsonl", KlMonitor(budget=0.1))
    for step in (4, 8, 12):
        training.log(step, **{"kl/per_token": 0.3, CHOSEN: -1.0 * step})
    lines = training.alarm_lines()
    assert [(line["step"], line["alarm"]) for line in lines] == [
        (4, "kl_budget"),
        (8, "displacement"),
    ]
    said = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"warning: step {line['step']}: {line['message']}" for line in lines]
    assert not training.control.should_training_stop


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_budget_that_stops_ends_the_training_on_every_rank(
    tmp_path: Path, monkeypatch, capsys, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    training = Training(tmp_path / "metrics.jsonl", KlMonitor(budget=0.1, stop=True))
    training.log(4, **{"kl/per_token": 0.1})
    assert not training.control.should_training_stop
    training.log(8, **{"kl/per_token": 0.11})
    assert training.control.should_training_stop
    lines = training.alarm_lines()
    assert len(lines) == (1 if rank == "0" else 0), "rank 0 alone writes"
    assert bool(capsys.readouterr().err) == (rank == "0")
    if lines:
        assert lines[0]["step"] == 8 and "Training ends here" in lines[0]["message"]


def test_a_resumed_training_remembers_up_to_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = Training(path, KlMonitor(budget=0.1))
    before.log(2, **{CHOSEN: -1.0})
    before.log(4, **{"kl/per_token": 0.3})
    before.log(6, **{CHOSEN: -1.2})  # after the checkpoint: done again
    path.write_text(path.read_text() + '{"step": 7, "lo')
    resumed = Training(path, KlMonitor(budget=0.1, stop=True), step=4)
    path.write_text("")
    resumed.log(6, **{CHOSEN: -1.2})
    assert [line["alarm"] for line in resumed.alarm_lines()] == ["displacement"]
    resumed.log(8, **{"kl/per_token": 0.3})
    assert len(resumed.alarm_lines()) == 1, "the budget's alarm was said before the checkpoint"
    assert resumed.control.should_training_stop, "said or not, the budget is exceeded"


def test_stop_needs_something_to_stop_at() -> None:
    with pytest.raises(ValidationError, match="`stop` needs a `budget`"):
        KlMonitor(stop=True)
    with pytest.raises(ValidationError, match="needs `prompts`"):
        KlMonitor(budget=0.1, prompts=0)
    assert Train().kl == KlMonitor(prompts=16, max_new_tokens=64, budget=None, stop=False)


def test_alarms_reach_wandb(tmp_path: Path) -> None:
    import wandb

    path = tmp_path / "metrics.jsonl"
    with wandb.init(project="test", mode="offline", dir=tmp_path):
        alarms = Alarms(path, Train(kl=KlMonitor(budget=0.1)), wandb=True)
        state, control = TrainerState(global_step=8), TrainerControl()
        alarms.on_train_begin(None, TrainerState(), control)
        alarms.on_log(None, state, control, logs={"kl/per_token": 0.3})
    wandb.teardown()  # as at the end of the process: everything is on disk
    (record,) = tmp_path.rglob("*.wandb")
    assert b"kl_budget at step 8" in record.read_bytes()
