"""Running a child process to its end, also when the user presses Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence

# (seconds to wait, what to send then). A terminal sends Ctrl-C to the child, too: it gets time
# to put its journals in order before it is asked, told and made to stop.
_PATIENCE = ((5.0, signal.SIGINT), (30.0, signal.SIGTERM), (10.0, signal.SIGKILL))


def run_to_end(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run a command and return its exit code.

    A `KeyboardInterrupt` is raised again only once the child has ended: `subprocess.run` would
    kill it a quarter of a second after Ctrl-C.
    """
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        for seconds, number in _PATIENCE:
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        process.wait()
        raise
