"""What happens to checkpoints while training: sealed, thinned out, the best one remembered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training.checkpoints import Checkpoint, damage, mark_complete, seal_files

BEST_BY = "eval_rewards/accuracies"


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Seals every checkpoint and then keeps the newest `keep` and the best one."""

    def __init__(self, keep: int, zero_stage: int) -> None:
        self._keep = keep
        self._zero_stage = zero_stage

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Save a new best step at once: the weights of an unsaved one could not be had later."""
        if args.metric_for_best_model is None or state.global_step == 0:
            return
        if state.best_metric is None or metrics[args.metric_for_best_model] > state.best_metric:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its shard
        folder = Path(str(args.output_dir))
        path = folder / f"checkpoint-{state.global_step}"
        own = seal_files(path, ranks.rank(), ranks.world_size())
        files = dict(gather_object(list(own.items())))
        if ranks.is_main():
            whole = Checkpoint(path, state.global_step, ranks.world_size(), self._zero_stage)
            mark_complete(whole, files)
            # Only now: transformers' `save_total_limit` would delete the last whole checkpoint
            # before the new one is sealed.
            rotate_checkpoints(
                str(folder),
                save_total_limit=self._keep,
                best_model_checkpoint=state.best_model_checkpoint,
            )


def put_best(model: Path, state: TrainerState) -> int:
    """Replace the weights of the last step in `model` by the best step's; return that step.

    Copied from its checkpoint and not loaded into the trainer (`load_best_model_at_end`): ZeRO
    cannot load shards that another number of processes wrote.
    """
    step, checkpoint = state.best_global_step, state.best_model_checkpoint
    if step is None or step == state.global_step:
        return int(state.global_step)
    problem = "it was deleted" if checkpoint is None else damage(Path(checkpoint))
    if problem:
        warn(f"the best step, {step}, cannot be selected: {problem}. Using the last one instead.")
        return int(state.global_step)
    for file in model.glob("*.safetensors*"):
        file.unlink()
    for file in Path(str(checkpoint)).glob("*.safetensors*"):
        shutil.copy2(file, model / file.name)
    return int(step)
