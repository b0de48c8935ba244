"""Alarms: problems that the metrics of a training show, with their likely cause and remedy.

Each check gets the lines logged so far, oldest first. If the newest line has the metric that it
checks, it may return an alarm; otherwise it returns None. The metrics have TRL's names (`loss`,
`rewards/accuracies`, with the prefix `eval_` for validation), except for two:

- `eval_logps/chosen_per_token`: log pi of the chosen validation answers, summed over all their
  tokens and divided by the number of these tokens (nats);
- `kl/per_token` with `kl/per_token_se`, from `divergence.summarise`: KL on answers of the policy.

Log-ratios of chosen and rejected answers, such as margins, are never read as a KL, because the
policy did not generate these answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState

from dpo_dist.config import KlMonitor, Train
from dpo_dist.intervals import half_width
from dpo_dist.losses import LN2, first_loss
from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training.metrics_log import MetricsLog, read_metrics

Line = Mapping[str, float]

DISPLACED = 0.1  # nats per token that chosen answers may lose
SATURATED_LOSS = 0.05  # of the sigmoid loss; the gradient's weight sigma(-margin) is about equal
SATURATED_ACCURACY = 0.99
GAP = 0.15  # training accuracy minus validation accuracy
TRAIN_WINDOW, VALIDATION_WINDOW = 10, 3  # how many logged values are averaged


@dataclass(frozen=True)
class Alarm:
    """A problem to look at. Each `kind` is reported once per training."""

    kind: str
    message: str


def raised(lines: Sequence[Line], settings: Train) -> list[Alarm]:
    """The alarms that the newest line raises."""
    checked = (displacement(lines), saturation(lines, settings), gap(lines))
    return [alarm for alarm in (*checked, over_budget(lines, settings.kl)) if alarm is not None]


def displacement(lines: Sequence[Line]) -> Alarm | None:
    """Chosen answers became less likely since the first evaluation: likelihood displacement (Razin
    et al. 2024, arXiv 2410.08847)."""
    key = "eval_logps/chosen_per_token"
    if key not in lines[-1]:
        return None
    first = next(line[key] for line in lines if key in line)
    fall = first - lines[-1][key]
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
    """Nearly all pairs are separated, so gradients are close to 0."""
    start = first_loss(settings.loss, settings.beta, settings.label_smoothing)
    if start is None:
        return None  # the `sft` loss never saturates
    solved = SATURATED_LOSS * start / LN2
    newest = lines[-1]
    if "eval_rewards/accuracies" in newest and "eval_loss" in newest:
        accuracy, loss = newest["eval_rewards/accuracies"], newest["eval_loss"]
        if accuracy >= SATURATED_ACCURACY and loss < solved:
            return _saturated(f"validation accuracy is {accuracy:.2f} at a loss of {loss:.3f}")
    losses = _last(lines, "loss", TRAIN_WINDOW) if "loss" in newest else []
    if len(losses) == TRAIN_WINDOW and (mean := sum(losses) / TRAIN_WINDOW) < solved:
        return _saturated(f"the training loss is {mean:.3f} over the last {TRAIN_WINDOW} logs")
    return None


def _saturated(evidence: str) -> Alarm:
    return Alarm(
        "saturation",
        f"{evidence}: the pairs are already separated, and further steps only widen margins. Stop "
        "earlier, lower the learning rate, or get harder pairs; check whether something trivial, "
        "such as length, identifies the chosen answer.",
    )


def gap(lines: Sequence[Line]) -> Alarm | None:
    """The averaged accuracy is much higher on training than on validation pairs."""
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
    """The KL from the reference, on the policy's answers, is above the run file's budget."""
    newest = lines[-1]
    if kl.budget is None or "kl/per_token" not in newest:
        return None
    value = newest["kl/per_token"]
    if not value > kl.budget:
        return None
    error = newest.get("kl/per_token_se")
    spread = "" if error is None else f" ± {half_width(error):.3f} (95 % interval)"
    return Alarm(
        "kl_budget",
        f"KL from the reference is {value:.3f}{spread} nats per token on the policy's own "
        f"answers, above train.kl.budget {kl.budget:g}: gains according to the judge may be "
        "over-optimisation. Use an earlier checkpoint, train fewer steps, lower the learning "
        "rate, or raise beta.",
    )


def _last(lines: Sequence[Line], key: str, count: int) -> list[float]:
    """The newest values of a metric, at most `count`."""
    return list(islice((line[key] for line in reversed(lines) if key in line), count))


class Alarms(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Reports each kind of alarm once, on the console, in metrics.jsonl and to W&B if `wandb`, and
    stops a training over its KL budget. All ranks must get the same logs, so that they stop at the
    same step."""

    def __init__(self, path: Path, settings: Train, *, wandb: bool = False) -> None:
        self._log = MetricsLog(path)
        self._settings = settings
        self._lines: list[Line] = []
        self._reported: set[str] = set()
        self._wandb = wandb

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, **_: object
    ) -> None:
        """Read the metrics and alarms of a resumed training, up to its checkpoint."""
        before = read_metrics(self._log.path, state.global_step) if ranks.is_main() else []
        self._reported = {line.alarm for line in before if line.alarm}
        self._lines = [line.values for line in before if not line.alarm]

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, logs: Line, **_: object
    ) -> None:
        self._lines.append(logs)
        for alarm in raised(self._lines, self._settings):
            stops = alarm.kind == "kl_budget" and self._settings.kl.stop
            if stops:
                control.should_training_stop = True
            if alarm.kind not in self._reported:
                self._reported.add(alarm.kind)
                if ranks.is_main():
                    self._report(state.global_step, alarm, stops)

    def _report(self, step: int, alarm: Alarm, stops: bool) -> None:
        message = alarm.message + (" Training ends here (train.kl.stop)." if stops else "")
        warn(f"step {step}: {message}")
        self._log.append({"step": step, "alarm": alarm.kind, "message": message})
        if self._wandb:
            import wandb

            if wandb.run is not None:
                wandb.run.alert(title=f"{alarm.kind} at step {step}", text=message, level="WARN")
