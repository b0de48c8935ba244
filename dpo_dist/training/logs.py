"""The logs of the training processes, and which process failed first.

<phase>/logs/<attempt>/
    rank-<k>.log          all output of a rank, including output of C++ code
    rank-<k>.error.json   its error, with the time
    node-<r>.log          the output of `accelerate launch` and torch's agent on a machine

Rank 0's log is shown while it grows. A process that fails makes all others fail: their collectives
break, and each writes a traceback. The times separate the cause from the consequences.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpo_dist.errors import DpoDistError, Preempted, UserError
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.storage.tails import last_lines
from dpo_dist.system import ranks
from dpo_dist.system.console import TERMINAL, scrub
from dpo_dist.training.job import STOP


def given_attempt() -> Path | None:
    """The log directory that `dpo-dist` has made for the ranks that it starts; None: a user's
    launcher has started this rank."""
    path = os.environ.get(ranks.LOGS)
    return Path(path) if path else None


def stop_file(attempt: Path) -> Path:
    """The file that tells the training with these logs to save and stop."""
    return attempt.parent.parent / STOP


def new_attempt(folder: Path) -> Path:
    """Create the log directory of one start; they are numbered from 1."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    attempt = folder / str(max(taken, default=0) + 1)
    attempt.mkdir(parents=True)
    return attempt


def rank_log(attempt: Path, rank: int) -> Path:
    return attempt / f"rank-{rank}.log"


def node_log(attempt: Path, rank: int) -> Path:
    return attempt / f"node-{rank}.log"


def redirect_output(path: Path) -> None:
    """Send all output of this process to a file, including output of C++ code."""
    with path.open("ab") as file:
        for number in _flushed():
            os.dup2(file.fileno(), number)


@contextmanager
def also_in(path: Path) -> Iterator[None]:
    """Append to a file what this process prints, including output of C++ code. `tee` is a process
    of its own, so that nothing is lost if this one is killed."""
    if sys.stderr.isatty():
        os.environ[TERMINAL] = "1"  # progress bars
    own = _flushed()
    kept = [os.dup(number) for number in own]
    # Its own session: signals to this process's group do not reach it.
    tee = subprocess.Popen(
        ["tee", "-a", str(path)], stdin=subprocess.PIPE, stdout=kept[1], start_new_session=True
    )
    assert tee.stdin is not None
    for number in own:
        os.dup2(tee.stdin.fileno(), number)
    tee.stdin.close()
    try:
        yield
    finally:
        for number, before in zip(_flushed(), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        # Children of this process, such as multiprocessing's tracker, may keep it open.
        with suppress(subprocess.TimeoutExpired):
            tee.wait(timeout=0.5)


def _flushed() -> list[int]:
    """The file descriptors of stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return [stream.fileno() for stream in (sys.stdout, sys.stderr)]


class Echo:
    """Prints what is appended to a file, even incomplete lines, such as progress bars."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0

    def show_new(self) -> None:
        """Print what was appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except FileNotFoundError:
            return
        if new:
            self._shown += len(new)
            sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()


# Errors of a process that lost its peer: a consequence, never the cause.
_CONSEQUENCE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|connectFullMesh|timed out waiting|"
    r"ncclRemoteError|Remote process exited|NCCL communicator was aborted",
    re.IGNORECASE,
)
_TAIL = 15  # lines of a log that an error message quotes


def record(attempt: Path, rank: int, error: BaseException) -> None:
    """Record the first error of a rank: the traceback, or the message and exit code of a
    `DpoDistError`."""
    if _path(attempt, rank).exists():
        return
    if isinstance(error, DpoDistError):
        _write(attempt, rank, str(error), known=True, status=error.exit_code)
    else:
        _write(attempt, rank, "".join(traceback.format_exception(error)).strip(), known=False)


def record_exit(attempt: Path, rank: int, status: int) -> None:
    """Record the exit code of a rank that recorded no error itself, because it was killed."""
    if _path(attempt, rank).exists():
        return
    text = f"it exited with code {status}"
    if status < 0:
        text = f"it was killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            text += ": out of memory, or killed by a user (check `dmesg` on that machine)"
    tail = last_lines(rank_log(attempt, rank), _TAIL)
    _write(attempt, rank, f"{text}\n{tail}".strip(), known=False)


def any_failed(attempt: Path) -> bool:
    return any(attempt.glob("rank-*.error.json"))


def refusal(attempt: Path) -> DpoDistError | None:
    """The error of rank 0 if there is nothing wrong with the training itself: it was stopped, or
    the input must change."""
    try:
        found = read_json(_path(attempt, 0))
    except FileNotFoundError:
        return None
    kinds = {kind.exit_code: kind for kind in (Preempted, UserError)}
    kind = kinds.get(found["status"])
    return kind(found["text"]) if kind else None


def explain(attempt: Path, status: int) -> str:
    """Why a training ended with an exit code: the first failure that is not a consequence."""
    failures = [read_json(path) for path in sorted(attempt.glob("rank-*.error.json"))]
    if not failures:
        tail = last_lines(node_log(attempt, 0), _TAIL)
        return f"training exited with code {status}; logs: {attempt}\n{tail}".rstrip()
    first = min(failures, key=lambda f: (bool(_CONSEQUENCE.search(f["text"])), f["time"]))
    where = f"rank {first['rank']} on {first['host']}"
    if first["known"]:
        return f"{first['text']}\n({where}; logs: {attempt})"
    if _CONSEQUENCE.search(first["text"]):
        where += " (another rank has ended; its launcher says why)"
    others = len(failures) - 1
    more = f"; {others} more failed after it" if others else ""
    return f"training failed, {where} first:\n{first['text']}\n(logs: {attempt}{more})"


def _write(attempt: Path, rank: int, text: str, *, known: bool, status: int = 1) -> None:
    write_json(
        _path(attempt, rank),
        {
            "rank": rank,
            "host": socket.gethostname(),
            "time": time.time(),
            "known": known,
            "status": status,
            "text": scrub(text),
        },
    )


def _path(attempt: Path, rank: int) -> Path:
    return attempt / f"rank-{rank}.error.json"
