from __future__ import annotations

import pytest

from dpo_dist.system.ranks import WHOLE, Shard


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_prompt_is_in_exactly_one_shard(count: int) -> None:
    shards = [Shard(index, count) for index in range(count)]
    assert all(sum(shard.holds(n) for shard in shards) == 1 for n in range(20))


@pytest.mark.parametrize("shard", [WHOLE, Shard(0, 3), Shard(2, 3)])
def test_what_a_shard_is_cut_into_is_the_shard(shard: Shard) -> None:
    parts = shard.cut(4)
    for number in range(50):
        assert sum(part.holds(number) for part in parts) == shard.holds(number)


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse("3/8") == Shard(3, 8)
    assert not Shard.parse("0/1").whole, "an array of one is an array"
    assert str(Shard(3, 8)) == "3/8"
