"""What a training logs to Weights & Biases."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback


class WandbLog(WandbCallback):  # type: ignore[misc]  # transformers is not followed
    """The library's callback, in a run that trainings share: those with a prefix keep apart."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> None:
        if not self._prefix:
            super().on_log(args, state, control, model=model, logs=logs, **more)
        elif state.is_world_process_zero:
            named = {f"{self._prefix}/{key}": value for key, value in (logs or {}).items()}
            self._wandb.log({**named, "train/global_step": state.global_step})
