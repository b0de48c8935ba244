"""Complete checkpoints, whose marker with checksums is written last, and their conversion.

checkpoints/checkpoint-<step>/
    ...         the files of transformers, DeepSpeed and torch.distributed.checkpoint
    COMPLETE    step, number of processes, sharding, size and digest of every file
                (`storage/digests.py`), and the SHA-256 of all this

transformers itself would resume from the highest step, complete or not. DeepSpeed's shards can be
converted to a universal form for any number of processes:
https://www.deepspeed.ai/tutorials/universal-checkpointing
FSDP's (torch.distributed.checkpoint) need no conversion.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dpo_dist.errors import PhaseFailed
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.storage.digests import tree_digests
from dpo_dist.system.console import say, warn
from dpo_dist.training.launch_shape import NOT_SHARDED

COMPLETE = "COMPLETE"
LATEST_UNIVERSAL = "latest_universal"
ANNOUNCED_BYTES = 2 * 10**9  # verifying more than this takes seconds and is announced
# A network file system shows another machine's files late: NFS caches directories for a minute.
VISIBLE_SECONDS = 180.0


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, written by `world_size` processes; `sharding` is that of their
    `LaunchShape`."""

    path: Path
    step: int
    world_size: int
    sharding: str = NOT_SHARDED


def written_files(checkpoint: Path) -> dict[str, int]:
    """The files of a checkpoint that this process sees: their paths in it, with sizes in bytes."""
    return {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != COMPLETE
    }


def seal(checkpoint: Checkpoint, written: Mapping[str, int], threads: int | None = None) -> None:
    """Write the marker of a checkpoint with the `written` files of all ranks. Raises `PhaseFailed`
    if they do not become visible here."""
    _await_files(checkpoint.path, written)
    names = sorted(written)
    digests = tree_digests([checkpoint.path / name for name in names], threads)
    marker: dict[str, object] = {
        "step": checkpoint.step,
        "world_size": checkpoint.world_size,
        "sharding": checkpoint.sharding,
        "files": {
            name: {"bytes": written[name], "digest": digest}
            for name, digest in zip(names, digests, strict=True)
        },
    }
    write_json(checkpoint.path / COMPLETE, marker | {"sha256": _marker_digest(marker)})


def _await_files(checkpoint: Path, written: Mapping[str, int]) -> None:
    deadline = time.monotonic() + VISIBLE_SECONDS
    for name, size in written.items():
        path = checkpoint / name
        while not path.is_file() or path.stat().st_size != size:
            if time.monotonic() > deadline:
                raise PhaseFailed(
                    f"{path}: {size} bytes were written, but this machine does not see them. Is "
                    "the run directory on a file system that all machines share?"
                )
            time.sleep(0.1)


def rotate(folder: Path, keep: int, best: int | None = None) -> None:
    """Remove all checkpoints except the newest `keep` complete ones, that of the `best` step, and
    those newer than the newest complete one, which may be being written."""
    found = _checkpoints(folder)
    complete = [step for step in sorted(found) if (found[step] / COMPLETE).exists()]
    kept = {*complete[-keep:], best}
    for step, path in found.items():
        if step not in kept and step < complete[-1]:
            # The marker first: if removing is interrupted, the rest must not look complete.
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)


def last_complete(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint. Newer incomplete or damaged ones are removed with a warning:
    only the process that holds the phase's lock may call this."""
    found = _checkpoints(folder)
    for step in sorted(found, reverse=True):
        path = found[step]
        problem = damage(path)
        if problem is None:
            marker = _read_marker(path)
            return Checkpoint(path, step, int(marker["world_size"]), str(marker["sharding"]))
        warn(f"{path} is incomplete ({problem}): removed")
        shutil.rmtree(path)
    if found:
        say("no complete checkpoint is left: training starts from the beginning")
    return None


def _checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by step, complete or not."""
    return {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }


def damage(checkpoint: Path, *patterns: str) -> str | None:
    """What is wrong with a checkpoint, or None if all its files are unchanged, or those whose paths
    in it match one of the `patterns`."""
    try:
        files = _read_marker(checkpoint)["files"]
    except FileNotFoundError:
        return "writing it was interrupted"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    names = [name for name in files if any(fnmatch(name, p) for p in patterns or ("*",))]
    # Sizes first: they are cheap, and reveal most incomplete writes.
    for name in names:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != files[name]["bytes"]:
            return f"{name} has changed"
    size = sum(files[name]["bytes"] for name in names)
    if size >= ANNOUNCED_BYTES:
        say(f"{checkpoint}: verifying {size / 1e9:.0f} GB")
    digests = tree_digests([checkpoint / name for name in names])
    try:
        changed = (n for n, d in zip(names, digests, strict=True) if d != files[n]["digest"])
        name = next(changed, None)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    finally:
        digests.close()
    return f"{name} has changed" if name else None


def _read_marker(checkpoint: Path) -> dict[str, Any]:
    """Raises `FileNotFoundError` without a marker, and others if it is damaged."""
    marker = read_json(checkpoint / COMPLETE)
    if marker.pop("sha256") != _marker_digest(marker):
        raise ValueError("its digest differs")
    return marker


def _marker_digest(marker: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


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
