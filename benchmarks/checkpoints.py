"""The time that a checkpoint takes besides writing it: sealing it, and verifying it for a resume.

    python -m benchmarks.checkpoints [--gigabytes N] [--quick] [--json FILE]

Files of a full fine-tuning without DeepSpeed: a third of the bytes are weights, two thirds the
optimizer's state, in one file each. They are read from the page cache, as after training wrote
them; `disk/...` drops them from it first, as on another machine. Each figure is the fastest of
`--rounds`, in seconds.

- one_thread: SHA-256 of one file after the other
- seal: `checkpoints.seal`, with half the cores, in the background of a training
- blocked: how long training waits for that
- verify: `checkpoints.damage`, with all cores, before a resume
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import option_parser, publish
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.training.checkpoints import COMPLETE, Checkpoint, damage, written_files
from dpo_dist.training.sealing import BackgroundSeal


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    size = 0.1 if options.quick else options.gigabytes
    # /tmp may be memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        checkpoint = Path(folder) / "checkpoint-1"
        checkpoint.mkdir()
        write(checkpoint, int(size * 1e9))
        rounds = [measure(checkpoint) for _ in range(1 if options.quick else options.rounds)]
    fastest = {name: min(found[name] for found in rounds) for name in rounds[0]}
    publish({"gigabytes": size, **fastest}, options.json)


def write(checkpoint: Path, size: int) -> None:
    """Write files of `size` bytes."""
    block = os.urandom(2**24)
    for path, share in zip(_files(checkpoint), (size // 3, size * 2 // 3), strict=True):
        with path.open("wb") as file:
            while share > 0:
                share -= file.write(block[:share])


def measure(path: Path) -> dict[str, float]:
    """Seconds, by name."""
    checkpoint, files = Checkpoint(path, 1, 1), _files(path)
    (path / COMPLETE).unlink(missing_ok=True)
    for file in files:
        file_digest(file)  # into the page cache

    def one_thread() -> None:
        for path in files:
            file_digest(path)

    def verify() -> None:
        assert damage(checkpoint.path) is None

    seconds = {"one_thread": _seconds(one_thread)}
    background = BackgroundSeal(keep=1)
    written = written_files(checkpoint.path)
    started = time.perf_counter()
    background.start(checkpoint, written, None)
    seconds["blocked"] = time.perf_counter() - started
    background.wait()
    seconds["seal"] = time.perf_counter() - started
    seconds["verify"] = _seconds(verify)
    for name, work in (("one_thread", one_thread), ("verify", verify)):
        for path in files:
            _drop(path)
        seconds[f"disk/{name}"] = _seconds(work)
    return seconds


def _files(checkpoint: Path) -> list[Path]:
    return [checkpoint / "model.safetensors", checkpoint / "optimizer.pt"]


def _drop(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
