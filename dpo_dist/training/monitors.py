"""The check of finite values, and the callback that writes metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpo_dist.errors import TrainingDiverged
from dpo_dist.system import ranks
from dpo_dist.system.console import Advance, progress
from dpo_dist.system.machine import GIB
from dpo_dist.training import Metrics
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.metrics_log import MetricsLog
from dpo_dist.training.usage import SpeedMeter, peak_memory


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
