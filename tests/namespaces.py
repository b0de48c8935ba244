"""Two simulated machines: network namespaces with their own host names and addresses, connected by
a virtual cable. Needs root and `ip` (Debian's iproute2)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DEVICE = "cable0"


@dataclass(frozen=True)
class Machine:
    """A machine. A command line that begins with `prefix` runs in it."""

    name: str
    address: str
    variables: tuple[str, ...] = ()  # NAME=VALUE, in addition to those of the parent process

    @property
    def prefix(self) -> list[str]:
        naming = f'hostname {self.name}; exec "$@"'
        return [
            *("ip", "netns", "exec", self.name),
            *("unshare", "--uts", "--", "sh", "-c", naming, "sh"),
            *("env", *self.variables),
        ]

    def unplug(self) -> None:
        """Unplug the cable: other machines are not notified of it."""
        _ip("-n", self.name, "link", "set", DEVICE, "down")


def why_not() -> str | None:
    """The reason why namespaces are not available, or None."""
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"`{program}` is not installed"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    first, second = (
        Machine(f"node-{number}-{os.getpid()}", f"10.77.0.{number + 1}") for number in range(2)
    )
    try:
        for machine in (first, second):
            _ip("netns", "add", machine.name)
        _ip(
            *("link", "add", DEVICE, "netns", first.name, "type", "veth"),
            *("peer", "name", DEVICE, "netns", second.name),
        )
        for machine in (first, second):
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", DEVICE)
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "link", "set", DEVICE, "up")
        yield first, second
    finally:
        for machine in (first, second):
            subprocess.run(["ip", "netns", "delete", machine.name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
