"""Nodes that meet in a directory: nobody waits for ever, and everybody ends as the leader does."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from dpo_dist.errors import ConfigError, NodeLost, PhaseFailed, Preempted
from dpo_dist.system.processes import Process
from dpo_dist.system.ranks import Nodes
from dpo_dist.training import nodes as module
from dpo_dist.training.follow import follow
from dpo_dist.training.nodes import Leader, Rendezvous, leading, rendezvous_folder


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr("dpo_dist.training.follow.GRACE_SECONDS", 0.2)


def node(rank: int, *, join: float = 5, silent: float = 5) -> Nodes:
    return Nodes(2, rank, "localhost", 29500, "first", join, silent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = rendezvous_folder(tmp_path / "run" / "train", node(0))
    assert path == tmp_path / "run" / ".train.nodes" / "first"
    return path


def no_ranks(logs: Path) -> Process:
    raise AssertionError("the leader has started no training")


def follower(
    folder: Path, nodes: Nodes, start: Callable[[Path], Process] = no_ranks
) -> Callable[[], object]:
    """Follow in the background; what is returned waits for what came of it."""
    came: list[object] = []

    def run() -> None:
        try:
            came.append(follow(nodes, folder, start))
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    # A thread cannot handle signals: only the main one is told of them.
    thread.start()

    def result() -> object:
        thread.join(timeout=20)
        return came[0]

    return result


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_dist.training.follow.handling_sigterm", lambda _: nullcontext())


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (PhaseFailed("it broke"), 1), (ConfigError("bad"), 2)]
)
def test_a_follower_ends_as_the_leader_does(folder: Path, error, status: int) -> None:
    result = follower(folder, node(1))
    try:
        with leading(node(0), folder) as leader:
            leader.wait_for_all()
            if error:
                raise error
    except (PhaseFailed, ConfigError) as raised:
        assert raised is error
    assert result() == (status, str(error) if error else "done")


def test_a_follower_that_comes_late_learns_that_all_is_over(folder: Path) -> None:
    with leading(node(0), folder):
        pass
    assert follow(node(1), folder, no_ranks) == (0, "done")


def test_a_leader_that_dies_without_a_word_is_given_up(folder: Path) -> None:
    folder.mkdir(parents=True)
    leader = Rendezvous(folder, node(0))
    leader.join()
    with leader.heartbeat():
        result = follower(folder, node(1, silent=0.5))
    died = result()
    assert isinstance(died, NodeLost)
    assert "node 0" in str(died) and "no sign of life" in str(died) and str(folder) in str(died)


def test_a_follower_that_dies_without_a_word_is_given_up(folder: Path) -> None:
    with (
        pytest.raises(NodeLost, match=r"node 1 .* no sign of life"),
        leading(node(0, silent=0.5), folder) as leader,
    ):
        other = Rendezvous(folder, node(1))
        other.join()
        with other.heartbeat():
            leader.wait_for_all()
            leader.check(stopping=False)
        while True:
            leader.check(stopping=False)
    status, message = other.ended()
    assert status == 1 and "no sign of life" in message, "a third node is told"


def test_a_follower_that_leaves_is_named_unless_all_are_stopping(folder: Path) -> None:
    folder.mkdir(parents=True)
    other = Rendezvous(folder, node(1))
    leader = Leader(Rendezvous(folder, node(0)))
    other.join()
    with other.heartbeat():
        other.post("left", "its training processes exited with code 1")
        for _ in range(20):
            leader.check(stopping=True)
        with pytest.raises(NodeLost, match="has stopped: its training processes exited with"):
            while True:
                leader.check(stopping=False)


def test_a_follower_that_is_told_to_stop_stops_all_before_the_next_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def at_once(handle: Callable[[], object]) -> Iterator[None]:
        handle()
        yield

    monkeypatch.setattr("dpo_dist.training.follow.handling_sigterm", at_once)
    result = follower(folder, node(1))
    with pytest.raises(Preempted), leading(node(0), folder) as leader:
        while True:
            leader.wait_for_all()
    status, message = result()
    assert status == 75 and re.match(r"node 1 \(.+\) was stopped while no training", message)


def test_a_directory_that_is_not_shared_is_named_on_both_sides(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(ConfigError, match=r"there within 0 s. Is the directory on a file system"):
        follow(node(1, join=0.2), there, no_ranks)
    with (
        pytest.raises(NodeLost, match=r"node 1 of 2 did not join via .*here"),
        leading(node(0, join=0.2), here) as leader,
    ):
        leader.wait_for_all()


def test_a_launch_id_serves_one_start(folder: Path) -> None:
    with leading(node(0), folder):
        pass
    with pytest.raises(ConfigError, match="Give every launch a new id"), leading(node(0), folder):
        pass


def test_a_follower_starts_its_ranks_when_the_leader_does_and_is_told_to_stop_by_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[Callable[[], object]] = []

    @contextmanager
    def kept(handle: Callable[[], object]) -> Iterator[None]:
        signals.append(handle)
        yield

    monkeypatch.setattr("dpo_dist.training.follow.handling_sigterm", kept)
    logs, started = tmp_path / "train" / "logs" / "1", threading.Event()
    logs.mkdir(parents=True)

    def start(given: Path) -> Process:
        assert given == logs
        started.set()
        return subprocess.Popen(["sleep", "60"])

    result = follower(folder, node(1), start)
    with pytest.raises(Preempted), leading(node(0), folder) as leader:
        leader.start_all(logs)
        assert started.wait(10)
        signals[0]()
        while not (tmp_path / "train" / "STOP").exists():
            leader.check(stopping=False)
        raise Preempted("saved")
    assert result() == (75, "saved")
