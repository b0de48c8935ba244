"""Which training process failed first, and of what.

One that fails takes all others with it: their collectives break, each writes a traceback of its
own, and torch's agent adds a summary. Every process leaves what it failed of in a file with the
time, so that the one that began it can be told from those that followed.
"""

from __future__ import annotations

import re
import signal
import socket
import time
import traceback
from pathlib import Path

from dpo_dist.errors import DpoDistError
from dpo_dist.storage.artifacts import read_json, write_json
from dpo_dist.storage.tails import last_lines
from dpo_dist.system.console import scrub
from dpo_dist.training.logs import node_log, rank_log

# What a process says whose peer has gone: the consequence, never the cause.
_CONSEQUENCE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|connectFullMesh|timed out waiting|"
    r"ncclRemoteError|Remote process exited|NCCL communicator was aborted",
    re.IGNORECASE,
)
_TAIL = 15  # lines of a log that are shown


def record(attempt: Path, rank: int, error: BaseException) -> None:
    """Keep what a rank fails of; of our own errors the message, which says it all."""
    known = isinstance(error, DpoDistError)
    text = str(error) if known else "".join(traceback.format_exception(error))
    _write(attempt, rank, text.strip(), known=known)


def record_exit(attempt: Path, rank: int, status: int) -> None:
    """Keep the exit code of a rank that has left nothing itself: something killed it."""
    if _path(attempt, rank).exists():
        return
    text = f"it exited with code {status}"
    if status < 0:
        name = signal.Signals(-status).name
        text = f"it was killed by {name}"
        if status == -signal.SIGKILL:
            text += ": out of memory, or killed by someone (check `dmesg` on that machine)"
    words = last_lines(rank_log(attempt, rank), _TAIL)
    _write(attempt, rank, f"{text}\n{words}".strip(), known=False)


def any_failed(attempt: Path) -> bool:
    return any(attempt.glob("rank-*.error.json"))


def explain(attempt: Path, status: int) -> str:
    """Why a training has ended with an exit code: the failure that came first."""
    found = [read_json(path) for path in sorted(attempt.glob("rank-*.error.json"))]
    if not found:
        words = last_lines(node_log(attempt, 0), _TAIL)
        return f"training exited with code {status}; logs: {attempt}\n{words}".rstrip()
    first = min(found, key=lambda one: (bool(_CONSEQUENCE.search(one["text"])), one["time"]))
    where = f"rank {first['rank']} on {first['host']}"
    logs = f"logs: {attempt}"
    if first["known"]:
        return f"{first['text']}\n({where}; {logs})"
    others = len(found) - 1
    more = f"; {others} more failed after it" if others else ""
    return f"training failed, {where} first:\n{first['text']}\n({logs}{more})"


def _write(attempt: Path, rank: int, text: str, *, known: bool) -> None:
    write_json(
        _path(attempt, rank),
        {
            "rank": rank,
            "host": socket.gethostname(),
            "time": time.time(),
            "known": known,
            "text": scrub(text),
        },
    )


def _path(attempt: Path, rank: int) -> Path:
    return attempt / f"rank-{rank}.error.json"
