"""What every rank of test_fsdp.py runs: trainings under FSDP2 on the CPU.

accelerate uses FSDP only with devices that it knows as accelerators. Here it gets CPU processes
that are connected by gloo as if they were GPUs; all that follows is its own code, transformers' and
torch's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Event

import accelerate.state
import transformers.trainer
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from dpo_dist.system import ranks
from dpo_dist.training.job import STOP, TrainingJob
from dpo_dist.training.trainer import train
from dpo_dist.training.worker import end_process


class Shares(TrainerCallback):
    """Records the largest share of the weights that this rank holds at the end of a step."""

    largest = 0.0

    def on_step_end(self, *_: object, model=None, **__: object) -> None:
        weights = list(model.parameters())
        assert all(isinstance(weight, DTensor) for weight in weights)
        local = sum(weight.to_local().numel() for weight in weights)
        share = local / sum(weight.numel() for weight in weights)
        Shares.largest = max(Shares.largest, share)


def main(*jobs: str) -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    as_gpus = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # noqa: E731
    accelerate.state.PartialState._prepare_backend = as_gpus
    transformers.trainer.DEFAULT_CALLBACKS.append(Shares)
    for path in jobs:
        job = TrainingJob.model_validate_json(Path(path).read_text(encoding="utf-8"))
        stop = Event()
        if (job.out / STOP).exists():  # after the first step
            stop.set()
        train(job, stop)
        (job.out / f"share-{ranks.rank()}.json").write_text(json.dumps(Shares.largest))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_process(0)
