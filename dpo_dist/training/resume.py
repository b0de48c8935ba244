"""Where a training goes on: chosen once, by the process that holds the phase's lock."""

from __future__ import annotations

from dpo_dist.errors import ConfigError
from dpo_dist.system.console import counted, say
from dpo_dist.training.checkpoints import last_complete
from dpo_dist.training.job import TrainingJob, launch_shape
from dpo_dist.training.universal import convert


def resume(job: TrainingJob) -> TrainingJob:
    """The job with the checkpoint that it goes on from, if there is one.

    The number of processes may have changed: DeepSpeed's shards are converted then. Raises
    `ConfigError` when the ZeRO stage has: its checkpoints do not fit each other.
    """
    checkpoint = last_complete(job.out / "checkpoints")
    if checkpoint is None:
        return job
    accelerate_config = job.settings.accelerate_config
    processes, stage = launch_shape(accelerate_config)
    if stage != checkpoint.zero_stage:
        raise ConfigError(
            f"accelerate_config: {accelerate_config} trains {_named(stage)}, but "
            f"{checkpoint.path} was written {_named(checkpoint.zero_stage)}. Resume with a "
            "matching configuration (the number of processes may differ), or start over under "
            "another run.name."
        )
    say(f"resuming from step {checkpoint.step}")
    # Without ZeRO every process holds everything, so that any number of them can load it.
    reshard = stage > 0 and checkpoint.world_size != processes
    if reshard:
        say(
            f"converting its shards from {checkpoint.world_size} to "
            f"{counted(processes, 'process', 'processes')}"
        )
        convert(checkpoint.path)
    return job.model_copy(update={"checkpoint": checkpoint.path, "reshard": reshard})


def _named(stage: int) -> str:
    return f"with DeepSpeed ZeRO-{stage}" if stage else "without ZeRO"
