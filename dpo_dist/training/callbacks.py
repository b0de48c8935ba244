"""transformers callbacks: save, stop on SIGTERM, seal checkpoints, log to trackers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from dpo_dist.system import ranks
from dpo_dist.system.console import warn
from dpo_dist.training import Metrics
from dpo_dist.training.checkpoints import Checkpoint, damage, written_files
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.sealing import BackgroundSeal, SaveSchedule

BEST_BY = "eval_rewards/accuracies"
# The files of a checkpoint that have its weights: of transformers, and of accelerate under FSDP.
WEIGHTS = ("*.safetensors*", "pytorch_model_fsdp_0/*")


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Decides when to save, seals every checkpoint, and keeps the newest ones and the best. Saves
    and stops after the step in which any rank received SIGTERM.

    All ranks must save and stop together, or some would wait forever. They do so only at the end of
    a step: DeepSpeed's optimizer steps before transformers counts the step, so a checkpoint in
    between would repeat a step.
    """

    def __init__(self, job: TrainingJob, signalled: Event) -> None:
        self._signalled = signalled
        self._sharding = job.shape.sharding
        self._schedule = SaveSchedule(job.settings)
        self._seal = BackgroundSeal(job.settings.keep_checkpoints)
        self._ready = 0.0  # when nothing but saving was left to do
        self.stopped = False

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, **_: object
    ) -> None:
        self._schedule.begin(state.global_step, state.max_steps, time.monotonic())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._ready = time.monotonic()
        stop = self._signalled.is_set()
        # Clocks differ between the ranks, so only one decides.
        due = ranks.is_main() and self._schedule.due(state.global_step, self._ready)
        stop, due = _on_any_rank((stop, due), args.device)
        # After the last step the model is saved instead.
        last = state.global_step >= state.max_steps
        control.should_save = (stop or due) and not last
        if stop and not last:
            control.should_training_stop = self.stopped = True
        if control.should_save:
            self._seal.wait()  # before the new files: the disk is planned for one at a time

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Metrics,
        **_: object,
    ) -> None:
        """Save a new best step at once: its weights are not available later."""
        self._ready = time.monotonic()
        if args.metric_for_best_model is None or state.global_step in (0, state.max_steps):
            return
        if state.best_metric is None or metrics[args.metric_for_best_model] > state.best_metric:
            control.should_save = True
            self._seal.wait()

    def on_log(self, *_: object, **__: object) -> None:
        self._ready = time.monotonic()  # the KL is measured and logged after `on_evaluate`

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: object, **_: object
    ) -> None:
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its files
        # Every rank lists them, because another machine may see them late or half. So the largest
        # size of a file is the final one.
        written: dict[str, int] = {}
        for files in gather_object([written_files(path)]):
            written |= {name: max(size, written.get(name, 0)) for name, size in files.items()}
        now = time.monotonic()
        self._schedule.saved(state.global_step, now, now - self._ready)
        if ranks.is_main():
            checkpoint = Checkpoint(path, state.global_step, ranks.world_size(), self._sharding)
            self._seal.start(checkpoint, written, state.best_global_step)

    def on_train_end(self, *_: object, **__: object) -> None:
        self._seal.wait()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # no process ends while the checkpoint is being sealed


def _on_any_rank(facts: Sequence[bool], device: torch.device) -> list[bool]:
    """Whether each is true on any rank; all ranks get the same answer."""
    found = torch.tensor(facts, dtype=torch.float32, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in found.tolist()]


def best_checkpoint(state: TrainerState) -> Path | None:
    """The checkpoint of the best step; None if that is the last step (also without
    `select: best`), or, with a warning, if its weights are damaged."""
    step, checkpoint = state.best_global_step, state.best_model_checkpoint
    if step is None or step == state.global_step:
        return None
    problem = "it was deleted" if checkpoint is None else damage(Path(checkpoint), *WEIGHTS)
    if problem:
        warn(f"the best step, {step}, cannot be selected: {problem}. Using the last one instead.")
        return None
    return Path(str(checkpoint))


def tracker_callbacks(job: TrainingJob) -> list[TrainerCallback]:
    """transformers' callbacks of the trackers in `args.report_to`."""
    if job.kind == "reference":
        return []
    trackers = list(job.settings.trackers)
    callbacks = [make() for make in get_reporting_integration_callbacks(trackers)]
    for callback in callbacks:
        # By default TensorBoard's files are in the folder of the checkpoints, which is removed.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(job.out / "tensorboard")
    return callbacks
