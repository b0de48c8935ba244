"""Runs child processes to their end, also on Ctrl-C and on SIGTERM."""

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

# (seconds to wait, signal to send then). The terminal sends Ctrl-C to the child, too, which first
# gets time to close its journals.
_SIGNALS = ((5.0, signal.SIGINT), (30.0, signal.SIGTERM), (10.0, signal.SIGKILL))

# The process id of a process whose children, started by multiprocessing, end with it.
_PARENT = "DPO_DIST_PARENT"

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

    Its output is appended to the file `output`, if given. `look` is called several times a second;
    if it raises, the child is killed and the error is raised again. On Ctrl-C, the child gets time
    to end, while `subprocess.run` would kill it after a quarter of a second. On SIGTERM,
    `on_terminate` is called, which by default passes the signal on; the child then has no time
    limit, since the sender of SIGTERM follows with SIGKILL.
    """
    with output.open("ab") if output else nullcontext() as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    with handling_sigterm(lambda: on_terminate(process)):
        try:
            while True:
                try:
                    return process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    look()
        except KeyboardInterrupt:
            end_all([process])
            raise
        except BaseException:
            process.kill()
            process.wait()
            raise


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends for any reason. The launcher
    of torch puts every worker into its own session, which signals to a process group do not reach.
    Linux only; on other systems, nothing happens."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), number)


def end_children_with_this() -> None:
    """Let the kernel kill the children that multiprocessing starts from now on, by fork or spawn,
    when this process ends for any reason. A spawned child imports the main module of its parent:
    `dpo_dist.cli` calls `die_if_child`."""
    os.environ[_PARENT] = str(os.getpid())
    os.register_at_fork(after_in_child=die_if_child)


def die_if_child() -> None:
    """`die_with_parent` if the parent wants it; see `end_children_with_this`."""
    if os.environ.get(_PARENT) == str(os.getppid()):
        die_with_parent()


def end_all(processes: Sequence[Process]) -> None:
    """Wait until all processes have ended. Those that continue get SIGINT, SIGTERM and SIGKILL, in
    that order."""
    for seconds, number in _SIGNALS:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.05)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
    for process in processes:
        process.wait()


@contextmanager
def handling_sigterm(handle: Callable[[], object]) -> Iterator[None]:
    """Call `handle` on SIGTERM, in the main thread, instead of ending the process."""
    previous = signal.signal(signal.SIGTERM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
