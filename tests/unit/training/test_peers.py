"""The ranks of a launch, each in a thread: nobody waits for ever, and all end as rank 0 does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import HashStore

from dpo_dist.errors import ConfigError, DpoDistError, PhaseFailed, Preempted
from dpo_dist.training import peers as module
from dpo_dist.training import worker
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.peers import Peers
from tests.training_jobs import training_job


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "GONE_SECONDS", 0.5)


@pytest.fixture
def ranks() -> list[Peers]:
    store = HashStore()
    return [Peers(store, rank, 3) for rank in range(3)]


def job(tmp_path: Path) -> TrainingJob:
    (tmp_path / "logs").mkdir(exist_ok=True)
    return training_job(tmp_path, kind="reference", logs=tmp_path / "logs")


def in_background(run: Callable[[], object]) -> Callable[[], object]:
    """Run it in a thread; what is returned waits for what came of it."""
    came: list[object] = []

    def record() -> None:
        try:
            came.append(run())
        except DpoDistError as error:
            came.append(error)

    thread = threading.Thread(target=record, daemon=True)
    thread.start()

    def result() -> object:
        thread.join(timeout=10)
        return came[0]

    return result


def joined(peers: Peers, seen: list[str]) -> Callable[[], object]:
    def run() -> object:
        while not isinstance(found := peers.wait(), int):
            seen.append(found.kind)
            peers.ready()
        peers.go()
        return found

    return in_background(run)


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_every_rank_joins_every_training_and_ends_as_rank_0_does(
    tmp_path: Path, ranks: list[Peers], status: int
) -> None:
    first, *others = ranks
    seen: list[list[str]] = [[], []]
    results = [joined(peers, kinds) for peers, kinds in zip(others, seen, strict=True)]
    reference = job(tmp_path)
    first.announce(reference)
    assert seen == [["reference"], ["reference"]], "rank 0 goes on when all are ready"
    first.announce(reference.model_copy(update={"kind": "dpo"}))
    first.end(status)
    assert [result() for result in results] == [status, status]
    assert seen == [["reference", "dpo"]] * 2


@pytest.mark.parametrize("error", [Preempted("stopped"), ConfigError("no run directory")])
def test_a_rank_that_leaves_lets_rank_0_start_nothing(
    tmp_path: Path, ranks: list[Peers], error: DpoDistError
) -> None:
    first, second, third = ranks
    result = joined(second, [])
    third.leave(error.exit_code, str(error))
    expected = Preempted if isinstance(error, Preempted) else PhaseFailed
    with pytest.raises(expected, match=f"rank 2: {error}"):
        first.announce(job(tmp_path))
    first.end(expected.exit_code)
    assert result() == expected.exit_code


def test_rank_0_alone_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = Peers.connect()
    alone.announce(job(tmp_path))
    alone.end(0)


def test_a_pass_that_cannot_be_stopped_is_followed_by_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM during the pass for the reference."""

    def train(found: TrainingJob, preempted: threading.Event) -> None:
        signal.raise_signal(signal.SIGTERM)
        assert preempted.is_set()

    monkeypatch.setattr("dpo_dist.training.trainer.train", train)
    with pytest.raises(Preempted, match="before its first step"):
        worker._train(job(tmp_path))
    worker._train(job(tmp_path).model_copy(update={"kind": "dpo"}))  # its trainer has saved


def test_a_run_directory_that_another_machine_lacks_is_named(tmp_path: Path) -> None:
    elsewhere = job(tmp_path).model_copy(update={"logs": tmp_path / "not-shared"})
    with pytest.raises(ConfigError, match="all machines need the run directory at the same path"):
        worker._enter(elsewhere)
