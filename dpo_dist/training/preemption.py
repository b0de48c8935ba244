"""SIGTERM while training: save at the end of the step, and stop.

`accelerate launch` passes neither signals nor exit codes on, so that both travel as files in the
phase's directory: `STOP` asks, `PREEMPTED` answers. A scheduler that signals every process itself
is understood as well.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpo_dist.training.job import STOP


class StopAtStepEnd(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Saves and stops after the step in which any rank was asked to.

    All ranks have to agree: one that goes on alone would wait for the others for ever.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STOP
        self._signalled = False
        self.stopped = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        asked = torch.tensor(float(self._signalled or self._file.exists()), device=args.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.item() and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
            self.stopped = True
