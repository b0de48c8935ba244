"""SIGTERM while training: save at the end of the step, and stop.

`accelerate launch` passes neither signals nor exit codes on, so that both travel as files in the
phase's directory: `STOP` asks, `PREEMPTED` answers. A scheduler that signals every process itself
is understood as well.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpo_dist.training.job import STOP


class StopAtStepEnd(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Saves and stops after the step in which any rank was asked to.

    All ranks have to agree: one that goes on alone would wait for the others for ever. Not before
    the step's end: under DeepSpeed the optimizer has stepped before transformers counts the step,
    so that a checkpoint from in between would repeat one.
    """

    def __init__(self, folder: Path, signalled: Event) -> None:
        self._file = folder / STOP
        self._signalled = signalled
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        asked = torch.tensor(
            float(self._signalled.is_set() or self._file.exists()), device=args.device
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.item() and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
            self.stopped = True
