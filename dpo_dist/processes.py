"""Running a child process to its end, also on Ctrl-C and on SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# (seconds to wait, what to send then). A terminal sends Ctrl-C to the child, too: it gets time
# to put its journals in order before it is asked, told and made to stop.
_PATIENCE = ((5.0, signal.SIGINT), (30.0, signal.SIGTERM), (10.0, signal.SIGKILL))

Process = subprocess.Popen[bytes]


def run_to_end(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    on_terminate: Callable[[Process], object] = subprocess.Popen.terminate,
) -> int:
    """Run a command and return its exit code, which is negative for a signal.

    A `KeyboardInterrupt` is raised again only once the child has ended: `subprocess.run` would
    kill it a quarter of a second after Ctrl-C. On SIGTERM `on_terminate` is called, by default to
    pass it on, and the child is waited for: how long it may take is for the sender to decide, who
    will follow with SIGKILL.
    """
    process = subprocess.Popen(command, env=env)
    with handling_sigterm(lambda: on_terminate(process)):
        try:
            return process.wait()
        except KeyboardInterrupt:
            end_all([process])
            raise


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
