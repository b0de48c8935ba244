"""DeepSpeed's universal checkpoints: ZeRO's shards put together again, for any number of processes.

https://www.deepspeed.ai/tutorials/universal-checkpointing
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dpo_dist.errors import PhaseFailed

LATEST = "latest_universal"


def convert(checkpoint: Path) -> None:
    """Write a universal form beside the shards; `latest_universal` names it.

    Raises `PhaseFailed` with the converter's own words.
    """
    shards = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    universal = shards.with_name(f"{shards.name}_universal")
    # Always anew: an earlier conversion may have been interrupted.
    (checkpoint / LATEST).unlink(missing_ok=True)
    shutil.rmtree(universal, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
        # DeepSpeed writes what the converter wants to know only for models that it partitions
        # itself (Megatron's); ours have nothing to tell.
        "--inject_missing_state",
        *("--input_folder", str(shards), "--output_folder", str(universal)),
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}  # files are copied, nothing is computed
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not (checkpoint / LATEST).exists():
        raise PhaseFailed(
            f"{shards} could not be converted for another number of processes. Resume with the "
            f"old number, or see the converter's output:\n{done.stderr[-2000:]}"
        )


def load_universal(trainer: Any) -> None:
    """Let the next resume read the universal form. For this start only: the flag lives in the
    process, since a plain checkpoint cannot be loaded while it is set."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    plugin.hf_ds_config.config["checkpoint"] = {"load_universal": True}
