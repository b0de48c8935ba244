"""Resuming a DeepSpeed training on another number of processes.

ZeRO's checkpoints hold a shard for each process. DeepSpeed's universal format holds whole tensors;
it is made from the shards once, and loaded for that one start: left on, later checkpoints of
ZeRO-3 would lose shards (DeepSpeed issue 7546).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from dpo_dist import ranks
from dpo_dist.console import say
from dpo_dist.errors import TrainingDiverged
from dpo_dist.training.checkpoints import Checkpoint


def load_resharded(trainer: Any, checkpoint: Checkpoint) -> None:
    """Prepare `trainer` to resume from a checkpoint of another number of processes.

    Nothing to do without DeepSpeed, where every process holds everything.
    """
    if not trainer.is_deepspeed_enabled or checkpoint.world_size == ranks.world_size():
        return
    source = checkpoint.path / f"global_step{checkpoint.step}"
    target = checkpoint.path / f"global_step{checkpoint.step}_universal"
    if ranks.is_main() and not (checkpoint.path / "latest_universal").exists():
        say(f"{checkpoint.path}: from {checkpoint.world_size} to {ranks.world_size()} processes")
        _convert(str(source), str(target))
    trainer.accelerator.wait_for_everyone()
    plugin = trainer.accelerator.state.deepspeed_plugin
    plugin.deepspeed_config["checkpoint"] = {"load_universal": True}


def _convert(source: str, target: str) -> None:
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    # LoRA: the frozen weights are no part of the optimizer's state, which is what is missing.
    command += ["--inject_missing_state", "--input_folder", source, "--output_folder", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrainingDiverged(
            "the checkpoint could not be converted for another number of processes:\n"
            f"{done.stderr[-2000:]}"
        )
