"""A real SLURM cluster on this machine: munged, slurmctld and two slurmd, all in one folder.

It has two nodes, each with eight GPUs that the scheduler only counts, in the partitions `main` and
`urgent`; jobs in `urgent` preempt jobs in `main`. It needs root and Debian's packages
(`make slurm`), changes no system files and leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip")
# slurmctld refuses loopback addresses. Every test process has a different address.
LINK = tuple(f"dpo{os.getpid() % 1_000_000}{end}" for end in "ab")
ADDRESS = f"10.231.{os.getpid() % 250}.1"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=86400
MessageTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=300
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={ports[1]} {node}
NodeName=n2 NodeHostname={host} NodeAddr={address} Port={ports[2]} {node}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP GraceTime={grace}
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
# The time in which a job in `main` can save when a job in `urgent` preempts it.
GRACE_SECONDS = 120
NODE = "CPUs=64 RealMemory=100000 Gres=gpu:8 State=UNKNOWN"


def why_not() -> str | None:
    """The reason why no cluster can be started, or None."""
    if os.geteuid() != 0:
        return "the daemons of SLURM need root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(missing)} (make slurm)" if missing else None


@dataclass(frozen=True)
class Cluster:
    """A running cluster. Its commands need `environment`."""

    folder: Path
    environment: dict[str, str]

    def call(self, *words: str) -> str:
        """The output of a command, which must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def states(self) -> dict[str, str]:
        """The state of every job by name; for an array, of an incomplete task if there is one."""
        listed = self.call("squeue", "--all", "--noheader", "--states=all", "--format=%j %T")
        states: dict[str, str] = {}
        for name, state in (line.split() for line in listed.splitlines()):
            if states.get(name, "COMPLETED") == "COMPLETED":
                states[name] = state
        return states

    def logs(self) -> str:
        """The end of the controller's log, for a test that fails."""
        return (self.folder / "slurmctld.log").read_text(errors="replace")[-3000:]


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster whose daemons end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    environment = {
        **os.environ,
        "PATH": _path(),
        "SLURM_CONF": str(_configure(folder)),
    }
    with ExitStack() as stack:
        stack.enter_context(_network())
        stack.enter_context(_daemon(folder, environment, "munged", *_munge_options(folder)))
        _until(lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(_daemon(folder, environment, "slurmctld", "-D", "-c"))
        for node in ("n1", "n2"):
            stack.enter_context(_daemon(folder, environment, "slurmd", "-D", "-N", node))
        running = Cluster(folder, environment)
        stack.callback(_end_jobs, running)
        _until(lambda: _idle(running) == 2, running.logs)
        yield running


def _configure(folder: Path) -> Path:
    gpus = folder / "gpus"
    gpus.mkdir()
    for number in range(8):
        (gpus / f"gpu{number}").touch()  # SLURM only checks that the file exists
    (folder / "gres.conf").write_text(f"Name=gpu File={gpus}/gpu[0-7]\n", encoding="utf-8")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    path = folder / "slurm.conf"
    path.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(),
            address=ADDRESS,
            folder=folder,
            ports=_free_ports(3),
            node=NODE,
            grace=GRACE_SECONDS,
        ),
        encoding="utf-8",
    )
    return path


def _munge_options(folder: Path) -> list[str]:
    names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    # --force: munge requires stricter permissions than pytest's folders have.
    return ["--foreground", "--force", f"--key-file={folder}/munge.key", *files]


@contextmanager
def _daemon(folder: Path, environment: dict[str, str], *words: str) -> Iterator[None]:
    name = words[0] if words[0] != "slurmd" else f"slurmd-{words[-1]}"
    with (folder / f"{name}.out.log").open("wb") as log:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _network() -> Iterator[None]:
    """An address of this machine that is not a loopback address."""
    commands = (
        ["ip", "link", "add", LINK[0], "type", "veth", "peer", "name", LINK[1]],
        ["ip", "address", "add", f"{ADDRESS}/24", "dev", LINK[0]],
        ["ip", "link", "set", LINK[0], "up"],
        ["ip", "link", "set", LINK[1], "up"],
    )
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, text=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", LINK[0]], check=False, capture_output=True)


def _end_jobs(running: Cluster) -> None:
    """Cancel all jobs, so that none of a failed test outlives the daemons."""
    running.run("scancel", f"--user={os.geteuid()}")
    deadline = time.monotonic() + 40
    while running.run("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.5)


def _idle(running: Cluster) -> int:
    words = ("sinfo", "--noheader", "--partition=main", "--Node", "--format=%T")
    return running.run(*words).stdout.split().count("idle")


def _until(condition, what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
