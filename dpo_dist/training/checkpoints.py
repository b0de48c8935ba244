"""Complete checkpoints, whose marker with checksums is written last, and their conversion.

checkpoints/checkpoint-<step>/
    ...         the files of transformers and DeepSpeed
    COMPLETE    step, number of processes, ZeRO stage, and SHA-256 and size of every file

transformers itself would resume from the highest step, complete or not. DeepSpeed's shards can be
converted to a universal form for any number of processes:
https://www.deepspeed.ai/tutorials/universal-checkpointing
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.errors import PhaseFailed
from dpo_dist.storage.artifacts import file_digest, read_json, write_json
from dpo_dist.system.console import say, warn

COMPLETE = "COMPLETE"
LATEST_UNIVERSAL = "latest_universal"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, written by `world_size` processes under a ZeRO stage (0: none)."""

    path: Path
    step: int
    world_size: int
    zero_stage: int = 0


def seal_files(checkpoint: Path, part: int = 0, parts: int = 1) -> dict[str, JsonValue]:
    """SHA-256 and size of every `parts`-th file from `part` on: the processes share the hashing."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in files[part::parts]
        if path.name != COMPLETE
    }


def mark_complete(checkpoint: Checkpoint, files: Mapping[str, JsonValue]) -> None:
    """Write the marker of a checkpoint. All ranks must have written their files."""
    write_json(
        checkpoint.path / COMPLETE,
        {
            "step": checkpoint.step,
            "world_size": checkpoint.world_size,
            "zero_stage": checkpoint.zero_stage,
            "files": dict(sorted(files.items())),
        },
    )


def last_complete(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint. Newer incomplete or damaged ones are removed with a warning:
    only the process that holds the phase's lock may call this."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(found, reverse=True):
        problem = damage(found[step])
        if problem is None:
            marker = read_json(found[step] / COMPLETE)
            world_size, zero_stage = int(marker["world_size"]), int(marker["zero_stage"])
            return Checkpoint(found[step], step, world_size, zero_stage)
        warn(f"{found[step]} is incomplete ({problem}): removed")
        shutil.rmtree(found[step])
    if found:
        say("no complete checkpoint is left: training starts from the beginning")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if all its files are unchanged."""
    try:
        marker = read_json(checkpoint / COMPLETE)
        int(marker["world_size"]), int(marker["zero_stage"])
        files = [(name, known["bytes"], known["sha256"]) for name, known in marker["files"].items()]
    except FileNotFoundError:
        return "writing it was interrupted"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    for name, size, sha256 in files:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        # The size first: it is cheap, and reveals most incomplete writes.
        if path.stat().st_size != size or file_digest(path) != sha256:
            return f"{name} has changed"
    return None


def convert_shards(checkpoint: Path) -> None:
    """Write the universal form beside the shards; the file `latest_universal` names it. Raises
    `PhaseFailed` with the converter's output."""
    shards = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    universal = shards.with_name(f"{shards.name}_universal")
    # Always convert again: an earlier conversion may have been interrupted.
    (checkpoint / LATEST_UNIVERSAL).unlink(missing_ok=True)
    shutil.rmtree(universal, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
        # DeepSpeed writes this state only for models that it partitions itself (Megatron).
        "--inject_missing_state",
        *("--input_folder", str(shards), "--output_folder", str(universal)),
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}  # it only copies files
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not (checkpoint / LATEST_UNIVERSAL).exists():
        raise PhaseFailed(
            f"{shards} could not be converted for another number of processes. Resume with the "
            f"old number, or see the converter's output:\n{done.stderr[-2000:]}"
        )
