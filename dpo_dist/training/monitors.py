"""Checks of the first loss and of finite values, and the callback that writes metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpo_dist.config import Train
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import first_loss, sigmoid_loss
from dpo_dist.system import ranks
from dpo_dist.system.console import Advance, progress
from dpo_dist.system.machine import GIB
from dpo_dist.training import Metrics
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.metrics_log import MetricsLog
from dpo_dist.training.usage import SpeedMeter, peak_memory

# The relative tolerance of the first loss.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Start:
    """The log-ratios log start(y|x) - log reference(y|x) of the pairs of the first micro-batch, in
    nats. Empty if training starts from the reference: then all are 0."""

    chosen: tuple[float, ...] = ()
    rejected: tuple[float, ...] = ()


def check_start(
    loss: float, rewards: Sequence[float], settings: Train, dtype: str, start: Start = Start()
) -> None:
    """Raise `TrainingDiverged` if the reference is the wrong model. `loss` and `rewards` (means of
    chosen and of rejected answers) are those of the first micro-batch. If training starts from the
    reference, the rewards must be 0, and the loss must have its known value if it has one.
    Otherwise both follow from the log-ratios of `start`."""
    beta = settings.beta
    # Twice that of the loss, because a margin m changes the sigmoid loss by m / 2. It grows with
    # beta in any dtype, because a reward is beta times a log-ratio.
    tolerance = 2 * TOLERANCE[dtype] * max(1.0, beta / 0.1)
    if not start.chosen:
        if not settings.wpo:  # its weights scale the loss by an unknown factor
            known = first_loss(settings.loss, beta, settings.label_smoothing)
            _check_loss(loss, known, beta, dtype, _CAUSES)
        # Most losses do not change if the reference shifts both answers by the same amount.
        if not all(abs(reward) <= tolerance for reward in rewards):
            raise TrainingDiverged(
                f"the first rewards are {rewards[0]:.5f} (chosen) and {rewards[1]:.5f} (rejected), "
                f"but they must be 0: {_CAUSES}"
            )
        return
    ratios = {"chosen": start.chosen, "rejected": start.rejected}
    for reward, (name, values) in zip(rewards, ratios.items(), strict=True):
        expected = beta * sum(values) / len(values)
        if not abs(reward - expected) <= tolerance:
            raise TrainingDiverged(
                f"the first reward of {name} answers is {reward:.5f}, but it must be "
                f"{expected:.5f}: {_MOVED_CAUSES}"
            )
    plain = settings.f_divergence == "reverse_kl" and not settings.wpo
    if plain and set(settings.loss) == {"sigmoid"}:  # for others the rewards must suffice
        margins = [c - r for c, r in zip(start.chosen, start.rejected, strict=True)]
        expected = settings.loss["sigmoid"] * sigmoid_loss(margins, beta)
        _check_loss(loss, expected, beta, dtype, _MOVED_CAUSES)


def _check_loss(loss: float, expected: float | None, beta: float, dtype: str, causes: str) -> None:
    if expected is None:
        return
    # In bfloat16, policy and reference round differently if their batches have different shapes: by
    # some tenths of a nat for an unlikely answer, which beta multiplies in the loss.
    tolerance = TOLERANCE[dtype] * (max(1.0, beta / 0.1) if dtype == "bfloat16" else 1.0)
    if not abs(loss - expected) <= tolerance * max(1.0, expected):
        raise TrainingDiverged(
            f"the first loss is {loss:.5f}, but it must be {expected:.5f}: {causes}"
        )


_MOVED_CAUSES = (
    "before the first step, the policy is the model that the round starts from, and the reference "
    "is the initial SFT model. Likely causes: the cached log-probs belong to other weights; "
    "dropout is on; the weights changed between computing their log-probs and training."
)
_CAUSES = (
    "before the first step, policy and reference are the same model. Likely causes: the reference "
    "is the base instead of the SFT model; dropout is on; the adapter belongs to another base; "
    "the weights changed between loading policy and reference."
)


def check_finite(name: str, values: Sequence[float], step: int, rows: Sequence[str] = ()) -> None:
    """Raise `TrainingDiverged` with the rows, if known, if a value is NaN or infinite."""
    if all(map(math.isfinite, values)):
        return
    where = f", in rows {', '.join(rows)}" if rows else ""
    worst = next(value for value in values if not math.isfinite(value))
    raise TrainingDiverged(
        f"{name} is {worst} at step {step}{where}. The last checkpoint is kept. Try a lower "
        "learning rate, and check for empty or damaged rows."
    )


class MetricsWriter(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Writes metrics.jsonl, updates the progress bar, and stops at a loss that is not finite. Adds
    speed (of `job`, if given) and peak memory to the metrics."""

    def __init__(self, path: Path, phase: str, job: TrainingJob | None = None) -> None:
        self._log = MetricsLog(path)
        self._phase = phase
        self._speed = SpeedMeter(job)
        self._stack = ExitStack()
        self._advance: Advance = lambda n, note="": None
        self._note = ""
        self._step = 0

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, **_: object
    ) -> None:
        self._step = state.global_step
        if ranks.is_main():
            self._log.truncate(state.global_step)
        bar = progress(self._phase, state.max_steps, state.global_step)
        self._advance = self._stack.enter_context(bar)
        self._speed.resume()

    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._speed.step(paused=control.should_evaluate)
        self._advance(state.global_step - self._step, self._note)
        self._step = state.global_step

    def on_evaluate(self, *_: object, **__: object) -> None:
        self._speed.resume()

    def on_save(self, *_: object, **__: object) -> None:
        self._speed.resume()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: object, logs: Metrics, **_: Any
    ) -> None:
        # Every rank has the loss averaged over all ranks, so they all stop together.
        for name in ("loss", "eval_loss", "grad_norm"):
            if name in logs:
                check_finite(name, [float(logs[name])], state.global_step)
        if "loss" in logs and "num_tokens" in logs:
            logs |= self._speed.log(float(logs["num_tokens"]))  # for the trackers too
            logs["peak_memory_gib"] = peak_memory(args.device).bytes / GIB
        else:
            self._speed.resume()
        self._note = _note(logs) or self._note
        if ranks.is_main():
            self._log.append({"step": state.global_step, "epoch": state.epoch, **logs})

    def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
        self._stack.close()


def _note(logs: Metrics) -> str:
    """The metrics that the progress bar shows."""
    shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    return " ".join(f"{label} {logs[key]:.3f}" for key, label in shown.items() if key in logs)
