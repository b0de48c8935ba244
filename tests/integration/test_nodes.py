"""Two machines (network namespaces) train as one process does, also when one of them dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_dist.errors import PREEMPTED
from tests.conftest import ROOT
from tests.integration.trainings import (
    await_checkpoint,
    command,
    losses,
    saved,
    variant,
)
from tests.namespaces import Machine, two_machines, why_not

PORT = "29511"
SILENT = 12.0  # seconds

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def two_nodes(tmp_path: Path) -> str:
    """ZeRO-2 over two machines with a process each."""
    return variant(tmp_path, "cpu_zero2", num_machines=2)


def node_options(
    machines: tuple[Machine, Machine], rank: int, launch_id: str, join: float
) -> list[str]:
    return [
        *("--nodes", "2", "--node-rank", str(rank), "--launch-id", launch_id),
        *("--main-address", machines[0].address, "--main-port", PORT),
        *("--join-timeout", str(join), "--node-timeout", str(SILENT)),
    ]


def start(
    machines: tuple[Machine, Machine],
    words: list[str],
    launch_id: str,
    folder: Path,
    more: tuple[str, ...] = (),
    join: float = 60,
) -> list[subprocess.Popen[bytes]]:
    """The same command on both machines, with `more` on node 1; their output goes to
    `<launch id>-<rank>.log`."""
    started = []
    for rank, machine in enumerate(machines):
        line = [*machine.prefix, *words, *node_options(machines, rank, launch_id, join)]
        line += more if rank else ()
        with (folder / f"{launch_id}-{rank}.log").open("wb") as log:
            started.append(
                subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            )
    return started


def codes(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(timeout=240) for process in processes]


def stopped_at(log: Path) -> int:
    """The step that a training was stopped after, which it has saved."""
    found = re.search(r"stopped after step (\d+), which is saved", log.read_text())
    assert found, log.read_text()[-2000:]
    return int(found[1])


@pytest.mark.slow
def test_two_nodes_train_as_one_process_and_survive_a_death_and_preemptions(
    tmp_path: Path, long_file: Path, two_nodes: str, whole: Callable[[str], Path]
) -> None:
    expected = losses(whole("cpu"))
    folder = tmp_path / "runs" / "test" / "train"
    words = command(long_file, two_nodes)

    with two_machines() as machines:
        leader, follower = start(machines, words, "killed", tmp_path)
        await_checkpoint(folder, [leader, follower], 0)
        machines[1].unplug()  # or its kernel would tell node 0 that the connections are closed
        os.killpg(follower.pid, signal.SIGKILL)
        died = time.monotonic()
        assert leader.wait(timeout=120) == 1
        assert time.monotonic() - died < SILENT + 10
        assert "has given no sign of life for 12 s" in (tmp_path / "killed-0.log").read_text()
        assert not (folder / "manifest.json").exists()
        follower.wait()
        killed_at = saved(folder)

    with two_machines() as machines:
        processes = start(machines, words, "preempted", tmp_path)
        saved_at = await_checkpoint(folder, processes, killed_at)
        for process in processes:  # a scheduler tells all of them
            process.terminate()
        assert codes(processes) == [PREEMPTED, PREEMPTED]
        assert f"resuming from step {killed_at}" in (tmp_path / "preempted-0.log").read_text()
        assert saved_at < len(expected) and not (folder / "manifest.json").exists()

        processes = start(machines, words, "drained", tmp_path)
        drained_at = await_checkpoint(folder, processes, stopped_at(tmp_path / "preempted-0.log"))
        processes[1].terminate()  # that machine alone is taken away
        assert codes(processes) == [PREEMPTED, PREEMPTED]
        stopped = stopped_at(tmp_path / "drained-0.log")
        assert drained_at <= stopped < len(expected)

        assert codes(start(machines, words, "finished", tmp_path)) == [0, 0]
        assert f"resuming from step {stopped}" in (tmp_path / "finished-0.log").read_text()
        assert losses(folder) == pytest.approx(expected, abs=2e-5)
        logs = sorted(path.name for path in (folder / "logs" / "4").iterdir())
        assert logs == ["node-0.log", "node-1.log", "rank-0.log", "rank-1.log"]

        assert codes(start(machines, words, "again", tmp_path)) == [0, 0]
        assert "already done" in (tmp_path / "again-0.log").read_text()
        assert codes(start(machines, words, "again", tmp_path)) == [2, 2]
        assert "Give every launch a new id" in (tmp_path / "again-0.log").read_text()


@pytest.mark.slow
def test_preflight_finds_what_is_wrong_on_which_node(
    training_file: Path, tmp_path: Path, two_nodes: str
) -> None:
    words = [sys.executable, "-m", "dpo_dist", "preflight", str(training_file), "--set", two_nodes]

    def printed(launch_id: str) -> list[str]:
        return [(tmp_path / f"{launch_id}-{rank}.log").read_text() for rank in range(2)]

    with two_machines() as machines:
        assert codes(start(machines, words, "well", tmp_path)) == [0, 0], printed("well")
        table = printed("well")[0]
        assert "FAILED" not in table and machines[1].name in table
        speeds = re.findall(r"(\d+) MB/s \(gloo\)", table)
        assert len(speeds) == 2 and all(int(speed) > 0 for speed in speeds)

        # Node 1 has another peft and another beta, and node 0's port is taken.
        (tmp_path / "other" / "peft-9.9.dist-info").mkdir(parents=True)
        metadata = tmp_path / "other" / "peft-9.9.dist-info" / "METADATA"
        metadata.write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9\n")
        path = os.pathsep.join([str(tmp_path / "other"), str(ROOT)])
        machines = (machines[0], replace(machines[1], variables=(f"PYTHONPATH={path}",)))
        listen = f"import socket; socket.create_server(('{machines[0].address}', {PORT})).accept()"
        server = subprocess.Popen([*machines[0].prefix, sys.executable, "-c", listen])
        try:
            found = codes(start(machines, words, "ill", tmp_path, ("--set", "train.beta=0.2")))
        finally:
            server.kill()
            server.wait()
        assert found == [2, 2]
        for text in printed("ill"):
            for rank, problem in (
                (0, f"--main-port {PORT}: node 0 cannot listen there"),
                (1, "run file: the run file or a --set option differs from node 0's"),
                (1, "versions: peft 9.9 (node 0: "),
            ):
                node = re.escape(f"node {rank} ({machines[rank].name}): ")
                assert re.search(f"{node}.*{re.escape(problem)}", text), text

        elsewhere = ("--set", f"run.output_dir={tmp_path}/not-shared")
        assert codes(start(machines, words, "apart", tmp_path, elsewhere, join=5)) == [2, 2]
        lead, follow = printed("apart")
        assert f"node 1 of 2 did not join via {tmp_path}/runs" in lead
        assert f"node 0 did not join via {tmp_path}/not-shared" in follow
