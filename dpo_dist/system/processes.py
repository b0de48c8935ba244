"""Running a child process to its end, also on Ctrl-C and on SIGTERM."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

# (seconds to wait, what to send then). A terminal sends Ctrl-C to the child, too: it gets time
# to put its journals in order before it is asked, told and made to stop.
_PATIENCE = ((5.0, signal.SIGINT), (30.0, signal.SIGTERM), (10.0, signal.SIGKILL))

_LOOK_SECONDS = 0.2

Process = subprocess.Popen[bytes]


def run_to_end(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    on_terminate: Callable[[Process], object] = subprocess.Popen.terminate,
    output: Path | None = None,
    look: Callable[[], object] = lambda: None,
) -> int:
    """Run a command and return its exit code, which is negative for a signal.

    What it writes goes to the file `output`, if that is given. `look` is called several times a
    second; when it raises, the child is killed and the error goes on.

    A `KeyboardInterrupt` is raised again only once the child has ended: `subprocess.run` would
    kill it a quarter of a second after Ctrl-C. On SIGTERM `on_terminate` is called, by default to
    pass it on, and the child is waited for: how long it may take is for the sender to decide, who
    will follow with SIGKILL.
    """
    with output.open("ab") if output else nullcontext() as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    with handling_sigterm(lambda: on_terminate(process)):
        try:
            return _wait(process, look)
        except KeyboardInterrupt:
            end_all([process])
            raise
        except BaseException:
            process.kill()
            process.wait()
            raise


def _wait(process: Process, look: Callable[[], object]) -> int:
    while True:
        try:
            return process.wait(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            look()


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, however that ends.

    torch's launcher puts every worker into a session of its own, which no signal to a process
    group reaches. Linux only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended just before
        os.kill(os.getpid(), signal.SIGKILL)


def end_all(processes: Sequence[Process]) -> None:
    """Wait until all have ended; those that go on are asked, told and made to, in that order."""
    for seconds, number in _PATIENCE:
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
    for process in processes:
        process.wait()


@contextmanager
def handling_sigterm(handle: Callable[[], object]) -> Iterator[None]:
    """Call `handle` on SIGTERM, in the main thread, instead of ending."""

    def on_signal(*_: Any) -> None:
        handle()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
