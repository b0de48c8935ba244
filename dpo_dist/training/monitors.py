"""What is watched while training: the first loss, finite losses, and the metrics' way to disk."""

from __future__ import annotations

import math
import time
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
from dpo_dist.training.metrics_log import MetricsLog

# How far the first loss may lie from its exact value, relative to it.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Start:
    """The log-ratios log start(y|x) - log reference(y|x) of the first micro-batch's pairs, in nats;
    empty where training starts from the reference, so that all are 0."""

    chosen: tuple[float, ...] = ()
    rejected: tuple[float, ...] = ()


def check_start(
    loss: float,
    rewards: Sequence[float],
    settings: Train,
    dtype: str,
    start: Start = Start(),
) -> None:
    """Stop a training whose reference is not the model that it should be.

    `loss` and `rewards` (mean of chosen, of rejected) are those of the first micro-batch. Where
    training starts from the reference, the loss has to have its known value where the mixture has
    one, and the rewards have to be 0 in any case. From another `start` both follow from its
    log-ratios.
    """
    if start.chosen:
        _check_moved_start(loss, rewards, settings, dtype, start)
        return
    expected = first_loss(settings.loss, settings.beta, settings.label_smoothing)
    tolerance = _tolerance(dtype, settings.beta)
    if settings.wpo:
        expected = None  # the weights scale the loss, by what cannot be told beforehand
    if expected is not None and not abs(loss - expected) <= tolerance * max(1.0, expected):
        raise TrainingDiverged(
            f"the first loss is {loss:.5f}, but it must be {expected:.5f}: {_CAUSES}"
        )
    # A reference that shifts both answers alike leaves the margins, and most losses, as they were.
    if not all(abs(reward) <= _reward_tolerance(dtype, settings.beta) for reward in rewards):
        raise TrainingDiverged(
            f"the first rewards are {rewards[0]:.5f} (chosen) and {rewards[1]:.5f} (rejected), "
            f"but they must be 0: {_CAUSES}"
        )


def _tolerance(dtype: str, beta: float) -> float:
    """bfloat16 rounds the log-probabilities of policy and reference differently when their batches
    differ in shape: by some tenths of a nat in an unlikely answer, times beta in the loss."""
    return TOLERANCE[dtype] * (max(1.0, beta / 0.1) if dtype == "bfloat16" else 1.0)


def _reward_tolerance(dtype: str, beta: float) -> float:
    """Twice the loss's, since a margin m moves the sigmoid loss by m / 2. A reward is beta times a
    log-ratio, also of the losses that take any beta, and so is its rounding in any dtype."""
    return 2 * TOLERANCE[dtype] * max(1.0, beta / 0.1)


def _check_moved_start(
    loss: float, rewards: Sequence[float], settings: Train, dtype: str, start: Start
) -> None:
    tolerance = _tolerance(dtype, settings.beta)
    for name, reward, ratios in zip(
        ("chosen", "rejected"), rewards, (start.chosen, start.rejected), strict=True
    ):
        expected = settings.beta * sum(ratios) / len(ratios)
        if not abs(reward - expected) <= _reward_tolerance(dtype, settings.beta):
            raise TrainingDiverged(
                f"the first reward of {name} answers is {reward:.5f}, but it must be "
                f"{expected:.5f}: {_MOVED_CAUSES}"
            )
    known = _moved_loss(settings, start)
    if known is not None and not abs(loss - known) <= tolerance * max(1.0, known):
        raise TrainingDiverged(
            f"the first loss is {loss:.5f}, but it must be {known:.5f}: {_MOVED_CAUSES}"
        )


def _moved_loss(settings: Train, start: Start) -> float | None:
    """The first loss where it is DPO's own; None for any other: the rewards say as much."""
    plain = settings.f_divergence == "reverse_kl" and not settings.wpo
    if set(settings.loss) != {"sigmoid"} or not plain:
        return None
    margins = [c - r for c, r in zip(start.chosen, start.rejected, strict=True)]
    return settings.loss["sigmoid"] * sigmoid_loss(margins, settings.beta)


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
    """Stop at a NaN or infinity, naming the rows that it came from where they are known."""
    if all(map(math.isfinite, values)):
        return
    where = f", in rows {', '.join(rows)}" if rows else ""
    worst = next(value for value in values if not math.isfinite(value))
    raise TrainingDiverged(
        f"{name} is {worst} at step {step}{where}. The last checkpoint is kept. Try a lower "
        "learning rate, and check for empty or damaged rows."
    )


class MetricsWriter(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Writes metrics.jsonl, moves the progress bar, and stops at a loss that is not finite."""

    def __init__(self, path: Path, phase: str) -> None:
        self._log = MetricsLog(path)
        self._phase = phase
        self._stack = ExitStack()
        self._advance: Advance = lambda n, note="": None
        self._note = ""
        self._step = 0
        self._tokens: float | None = None
        self._seconds = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step = state.global_step
        if ranks.is_main():
            self._log.forget_after(state.global_step)
        bar = progress(self._phase, state.max_steps, state.global_step)
        self._advance = self._stack.enter_context(bar)
        self._seconds = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._advance(state.global_step - self._step, self._note)
        self._step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        # Every rank sees the loss averaged over all ranks, so all of them stop together.
        logs = dict(logs or {})
        for name in ("loss", "eval_loss", "grad_norm"):
            if name in logs:
                check_finite(name, [float(logs[name])], state.global_step)
        logs |= self._throughput(logs)
        self._note = _note(logs) or self._note
        if ranks.is_main():
            self._log.append({"step": state.global_step, "epoch": state.epoch, **logs})

    def _throughput(self, logs: dict[str, float]) -> dict[str, float]:
        """Tokens per second since the last training log; the first one has no predecessor."""
        if "loss" not in logs or "num_tokens" not in logs:
            # Time spent on validation is not time spent on training.
            self._tokens = None
            return {}
        now, tokens = time.monotonic(), float(logs["num_tokens"])
        before, self._tokens = self._tokens, tokens
        seconds, self._seconds = now - self._seconds, now
        return {} if before is None else {"tokens_per_second": (tokens - before) / seconds}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._stack.close()


def _note(logs: dict[str, float]) -> str:
    """The few figures that fit behind the progress bar."""
    shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    return " ".join(f"{label} {logs[key]:.3f}" for key, label in shown.items() if key in logs)
