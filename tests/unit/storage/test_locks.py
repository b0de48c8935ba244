from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack

import pytest

from dpo_dist.errors import DirectoryLocked, NoFileLocks
from dpo_dist.storage import locks
from dpo_dist.system.ranks import Shard


def test_shards_of_one_cut_work_side_by_side(tmp_path) -> None:
    with ExitStack() as held:
        for index in range(3):
            held.enter_context(locks.shared(tmp_path / "sample", Shard(index, 3)))


def test_a_shard_that_is_taken_is_refused_with_its_owner(tmp_path) -> None:
    path = tmp_path / "sample"
    with (
        locks.shared(path, Shard(1, 3)),
        pytest.raises(DirectoryLocked, match="in use by shard 1/3, process"),
        locks.shared(path, Shard(1, 3)),
    ):
        pass


def test_another_cut_waits_until_nobody_is_at_work(tmp_path) -> None:
    path = tmp_path / "sample"
    with (
        locks.shared(path, Shard(1, 3)),
        pytest.raises(DirectoryLocked, match="in use by 3 shards"),
        locks.shared(path, Shard(0, 2)),
    ):
        pass
    with locks.shared(path, Shard(0, 2)):
        pass


def test_who_works_alone_and_who_has_a_shard_keep_each_other_out(tmp_path) -> None:
    path = tmp_path / "sample"
    with (
        locks.exclusive(path),
        pytest.raises(DirectoryLocked, match="process"),
        locks.shared(path, Shard(0, 2)),
    ):
        pass
    with (
        locks.shared(path, Shard(0, 2)),
        pytest.raises(DirectoryLocked, match="2 shards"),
        locks.exclusive(path),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As Lustre answers without its mount option, and NFS 3 without its daemon."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for held in (locks.exclusive(tmp_path / "a"), locks.shared(tmp_path / "a", Shard(0, 2))):
        with (
            pytest.raises(
                NoFileLocks, match=r"does not support locks \(.*`dpo-dist doctor RUN.yaml`"
            ),
            held,
        ):
            pass
