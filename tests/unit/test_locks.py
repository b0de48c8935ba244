from __future__ import annotations

from contextlib import ExitStack

import pytest

from dpo_dist import locks
from dpo_dist.errors import DirectoryLocked
from dpo_dist.ranks import Shard


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
        locks.sole(path),
        pytest.raises(DirectoryLocked, match="process"),
        locks.shared(path, Shard(0, 2)),
    ):
        pass
    with (
        locks.shared(path, Shard(0, 2)),
        pytest.raises(DirectoryLocked, match="2 shards"),
        locks.sole(path),
    ):
        pass
