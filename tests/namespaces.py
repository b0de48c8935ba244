"""Two "machines" on one: network namespaces with host names and addresses of their own, and a
cable between them. Needs root and `ip` (Debian's iproute2)."""

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
    """One of the two: everything that starts with `prefix` runs in it."""

    name: str
    address: str
    variables: tuple[str, ...] = ()  # NAME=VALUE, besides those of whoever starts it

    @property
    def prefix(self) -> list[str]:
        naming = f'hostname {self.name}; exec "$@"'
        return [
            *("ip", "netns", "exec", self.name),
            *("unshare", "--uts", "--", "sh", "-c", naming, "sh"),
            *("env", *self.variables),
        ]

    def unplug(self) -> None:
        """Pull the cable: whoever waits for this machine is not told that it has gone."""
        _ip("-n", self.name, "link", "set", DEVICE, "down")


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
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
