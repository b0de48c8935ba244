"""Asynchronous work behind an iterator: order, errors, early stops, and its waits."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from dpo_dist.system.background import LONGEST_WAIT, Put, pause, stream


def test_what_was_put_comes_before_the_error_that_ended_it() -> None:
    async def produce(put: Put[int]) -> None:
        await put(1)
        await put(2)
        raise OSError("the end")

    items = stream(produce)
    assert [next(items), next(items)] == [[1], [2]]
    with pytest.raises(OSError, match="the end"):
        next(items)


def test_put_returns_when_the_consumer_comes_back() -> None:
    begun: list[int] = []

    async def produce(put: Put[int]) -> None:
        for n in range(5):
            begun.append(n)
            await put(n)

    for (item,) in stream(produce):
        assert begun == list(range(item + 1))


def test_what_comes_in_meanwhile_comes_together_and_before_an_error() -> None:
    async def produce(put: Put[int]) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(5):
                group.create_task(put(n))
            await asyncio.sleep(0.05)
            raise OSError("the end")

    items = stream(produce)
    found = next(items)
    time.sleep(0.2)
    with pytest.raises(ExceptionGroup, match="unhandled"):
        while True:
            found += next(items)
    assert sorted(found) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stopped_by", [GeneratorExit, KeyboardInterrupt])
def test_a_consumer_that_stops_cancels_the_work_and_waits_for_its_end(stopped_by) -> None:
    cancelled = threading.Event()

    async def produce(put: Put[int]) -> None:
        try:
            await put(1)
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    items = stream(produce)
    next(items)
    with pytest.raises(stopped_by):
        items.throw(stopped_by)
    assert cancelled.is_set()
    assert not [thread for thread in threading.enumerate() if "_finish" in thread.name]


def test_waits_grow_up_to_a_minute_and_are_jittered() -> None:
    for failures, whole in [(1, 0.5), (2, 1.0), (5, 8.0), (50, LONGEST_WAIT)]:
        waits = {pause(failures, 0.5) for _ in range(50)}
        assert whole / 2 <= min(waits) < max(waits) <= whole
