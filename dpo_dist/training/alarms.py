"""Alarms: what the metrics of a training say is going wrong, each with its likely cause and remedy.

The checks are functions of the lines logged so far, oldest first. Each one speaks when the newest
line carries the metric that it watches, and returns None otherwise. They expect TRL's names
(`loss`, `rewards/accuracies`, with `eval_` before validation's) and two of ours:

- `eval_logps/chosen_per_token`: log pi of the chosen validation answers, summed over all their
  tokens and divided by the number of these tokens (nats);
- `kl/per_token` with `kl/per_token_se`, from `divergence.summarise`: KL on answers of the policy.

Log-ratios of chosen and rejected answers, margins among them, are never read as a KL: the answers
are not the policy's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpo_dist.config import KlMonitor, Train
from dpo_dist.intervals import half_width
from dpo_dist.losses import LN2, first_loss
from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training.metrics_log import MetricsLog

Line = Mapping[str, Any]

DISPLACED = 0.1  # nats per token that chosen answers may lose
SATURATED_LOSS = 0.05  # of the sigmoid loss: the gradient's weight sigma(-margin) is about as much
SATURATED_ACCURACY = 0.99
GAP = 0.15  # train accuracy less validation accuracy
TRAIN_WINDOW, VALIDATION_WINDOW = 10, 3  # logged values that are averaged


@dataclass(frozen=True)
class Alarm:
    """Something to look at; `kind` is said once in a training."""

    kind: str
    message: str


def raised(lines: Sequence[Line], settings: Train) -> list[Alarm]:
    """The alarms that the newest line raises."""
    found = (
        displacement(lines),
        saturation(lines, settings),
        gap(lines),
        over_budget(lines, settings.kl),
    )
    return [alarm for alarm in found if alarm is not None]


def displacement(lines: Sequence[Line]) -> Alarm | None:
    """Likelihood displacement (Razin et al. 2024, arXiv 2410.08847): the answers that were
    preferred become less likely, too, counted from the first evaluation."""
    key = "eval_logps/chosen_per_token"
    if key not in lines[-1]:
        return None
    first = next(float(line[key]) for line in lines if key in line)
    fall = first - float(lines[-1][key])
    if not fall > DISPLACED:
        return None
    return Alarm(
        "displacement",
        f"chosen validation answers lost {fall:.2f} nats per token since the first evaluation: "
        "probability may be going to answers that are neither chosen nor rejected. Common, and "
        "harmless while generated answers keep their format; otherwise train fewer steps, drop "
        "pairs whose two answers are nearly identical, or raise beta.",
    )


def saturation(lines: Sequence[Line], settings: Train) -> Alarm | None:
    """Pairs that are all told apart: hardly a gradient is left that says anything new."""
    start = first_loss(settings.loss, settings.beta, settings.label_smoothing)
    if start is None:
        return None  # the likelihood of the chosen answers never saturates
    solved = SATURATED_LOSS * start / LN2
    newest = lines[-1]
    if "eval_rewards/accuracies" in newest and "eval_loss" in newest:
        accuracy, loss = float(newest["eval_rewards/accuracies"]), float(newest["eval_loss"])
        if accuracy >= SATURATED_ACCURACY and loss < solved:
            return _saturated(f"validation accuracy is {accuracy:.2f} at a loss of {loss:.3f}")
    losses = _last(lines, "loss", TRAIN_WINDOW) if "loss" in newest else []
    if len(losses) == TRAIN_WINDOW and (mean := sum(losses) / TRAIN_WINDOW) < solved:
        return _saturated(f"the training loss is {mean:.3f} over the last {TRAIN_WINDOW} logs")
    return None


def _saturated(what: str) -> Alarm:
    return Alarm(
        "saturation",
        f"{what}: the pairs are already separated, and further steps only widen margins. Stop "
        "earlier, lower the learning rate, or get harder pairs; check whether something trivial, "
        "such as length, gives the chosen answer away.",
    )


def gap(lines: Sequence[Line]) -> Alarm | None:
    """Accuracy on training pairs that validation pairs do not follow, both averaged."""
    key = "rewards/accuracies"
    if f"eval_{key}" not in lines[-1]:
        return None
    train = _last(lines, key, TRAIN_WINDOW)
    validation = _last(lines, f"eval_{key}", VALIDATION_WINDOW)
    if len(train) < TRAIN_WINDOW or len(validation) < VALIDATION_WINDOW:
        return None
    on_train, on_validation = sum(train) / len(train), sum(validation) / len(validation)
    if not on_train - on_validation > GAP:
        return None
    return Alarm(
        "gap",
        f"accuracy is {on_train:.2f} on training and {on_validation:.2f} on validation pairs: "
        "training pairs are being memorised. Train fewer epochs, lower the learning rate, or get "
        "more pairs.",
    )


def over_budget(lines: Sequence[Line], kl: KlMonitor) -> Alarm | None:
    """The policy is farther from the reference, on its own answers, than the run file allows."""
    newest = lines[-1]
    if kl.budget is None or "kl/per_token" not in newest:
        return None
    value = float(newest["kl/per_token"])
    if not value > kl.budget:
        return None
    error = newest.get("kl/per_token_se")
    spread = "" if error is None else f" ± {half_width(float(error)):.3f} (95 % interval)"
    return Alarm(
        "kl_budget",
        f"KL from the reference is {value:.3f}{spread} nats per token on the policy's own "
        f"answers, above train.kl.budget {kl.budget:g}: gains according to the judge may be "
        "over-optimisation. Use an earlier checkpoint, train fewer steps, lower the learning "
        "rate, or raise beta.",
    )


def _last(lines: Sequence[Line], key: str, count: int) -> list[float]:
    """The newest `count` values of a metric, or all where there are fewer."""
    return list(islice((float(line[key]) for line in reversed(lines) if key in line), count))


class Alarms(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Says each kind of alarm once, on the console, in metrics.jsonl and to wandb where that is
    used, and ends a training over budget.

    Every rank must be given the same logs, so that all of them stop at the same step.
    """

    def __init__(self, path: Path, settings: Train, *, wandb: bool = False) -> None:
        self._log = MetricsLog(path)
        self._settings = settings
        self._lines: list[Line] = []
        self._said: set[str] = set()
        self._wandb = wandb

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A resumed training goes on from what was logged, and said, up to its checkpoint."""
        before = self._log.until(state.global_step) if ranks.is_main() else []
        self._said = {line["alarm"] for line in before if "alarm" in line}
        self._lines = [line for line in before if "alarm" not in line]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        self._lines.append(logs or {})
        for alarm in raised(self._lines, self._settings):
            stops = alarm.kind == "kl_budget" and self._settings.kl.stop
            if stops:
                control.should_training_stop = True
            if alarm.kind not in self._said:
                self._said.add(alarm.kind)
                self._tell(state.global_step, alarm, stops)

    def _tell(self, step: int, alarm: Alarm, stops: bool) -> None:
        if not ranks.is_main():
            return
        message = alarm.message + (" Training ends here (train.kl.stop)." if stops else "")
        warn(f"step {step}: {message}")
        self._log.append({"step": step, "alarm": alarm.kind, "message": message})
        if self._wandb:
            import wandb

            if wandb.run is not None:
                wandb.run.alert(title=f"{alarm.kind} at step {step}", text=message, level="WARN")
