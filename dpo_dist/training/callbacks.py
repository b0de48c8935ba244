"""transformers callbacks: stop on SIGTERM, seal checkpoints, log to Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import WandbCallback
from transformers.trainer_utils import rotate_checkpoints

from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training import Metrics
from dpo_dist.training.checkpoints import Checkpoint, damage, mark_complete, seal_files
from dpo_dist.training.job import STOP

BEST_BY = "eval_rewards/accuracies"


class StopAtStepEnd(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Saves and stops after the step in which any rank received SIGTERM or saw the file `STOP`. The
    phase writes this file because `accelerate launch` does not forward signals.

    All ranks must stop together, or some would wait forever. They stop only at the end of a step:
    DeepSpeed's optimizer steps before transformers counts the step, so a checkpoint in between
    would repeat a step.
    """

    def __init__(self, folder: Path, signalled: Event) -> None:
        self._file = folder / STOP
        self._signalled = signalled
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        requested = torch.tensor(
            float(self._signalled.is_set() or self._file.exists()), device=args.device
        )
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
        if requested.item() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.stopped = True


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Seals every checkpoint and keeps the newest `keep` and the best one."""

    def __init__(self, keep: int, zero_stage: int) -> None:
        self._keep = keep
        self._zero_stage = zero_stage

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Metrics,
        **_: object,
    ) -> None:
        """Save a new best step at once: its weights are not available later."""
        if args.metric_for_best_model is None or state.global_step == 0:
            return
        if state.best_metric is None or metrics[args.metric_for_best_model] > state.best_metric:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: object, **_: object
    ) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its shard
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        own = seal_files(path, ranks.rank(), ranks.world_size())
        files = dict(gather_object(list(own.items())))
        if ranks.is_main():
            whole = Checkpoint(path, state.global_step, ranks.world_size(), self._zero_stage)
            mark_complete(whole, files)
            # After sealing: transformers' `save_total_limit` would delete the last complete
            # checkpoint before the new one is sealed.
            rotate_checkpoints(
                str(args.output_dir),
                save_total_limit=self._keep,
                best_model_checkpoint=state.best_model_checkpoint,
            )


def best_checkpoint(state: TrainerState) -> Path | None:
    """The checkpoint of the best step; None if that is the last step (also without
    `select: best`), or, with a warning, if the checkpoint is damaged."""
    step, checkpoint = state.best_global_step, state.best_model_checkpoint
    if step is None or step == state.global_step:
        return None
    problem = "it was deleted" if checkpoint is None else damage(Path(checkpoint))
    if problem:
        warn(f"the best step, {step}, cannot be selected: {problem}. Using the last one instead.")
        return None
    return Path(str(checkpoint))


class WandbLog(WandbCallback):  # type: ignore[misc]  # transformers is not followed
    """transformers' callback, with `prefix/` in front of each metric if `prefix` is not empty."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: Metrics, **kw: object
    ) -> None:
        if not self._prefix:
            super().on_log(args, state, control, logs=logs, **kw)
        elif state.is_world_process_zero:
            named = {f"{self._prefix}/{key}": value for key, value in logs.items()}
            self._wandb.log({**named, "train/global_step": state.global_step})
