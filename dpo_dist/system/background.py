"""Runs asynchronous work behind a synchronous iterator, and computes the delays of retries."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

Put = Callable[[T], Awaitable[None]]

LONGEST_WAIT = 60.0  # seconds


def stream(
    produce: Callable[[Put[T]], Coroutine[object, object, None]],
) -> Generator[list[T], None, None]:
    """Run `produce(put)` on an event loop in another thread, and yield lists of its new items.

    `await put(item)` returns when the consumer asks for the next list, so that `produce` waits for
    a slow consumer. An error of `produce` is raised here after all its items. If the consumer stops
    early, by an error or Ctrl-C, `produce` is cancelled.
    """
    results = queue.SimpleQueue[tuple[T, asyncio.Event] | BaseException | None]()

    async def put(item: T) -> None:
        taken = asyncio.Event()
        results.put((item, taken))
        await taken.wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(produce(put))
    thread = threading.Thread(target=_finish, args=(loop, task, results), daemon=True)
    thread.start()
    try:
        ended = False
        while not ended:
            # At least one result; the end of `produce` is the last.
            new = [results.get(), *(results.get() for _ in range(results.qsize()))]
            group = [result for result in new if isinstance(result, tuple)]
            if group:
                yield [item for item, _ in group]
            with suppress(RuntimeError):  # the loop is closed: `produce` has failed
                for _, taken in group:
                    loop.call_soon_threadsafe(taken.set)
            ended = len(group) < len(new)
            if isinstance(new[-1], BaseException):
                raise new[-1]
    finally:
        with suppress(RuntimeError):  # the loop is closed: nothing to cancel
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _finish(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    results: queue.SimpleQueue[Any],
) -> None:
    """Run the task to its end, and put its error or None as the last result."""
    end: BaseException | None = None
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseException as error:  # raised in the consumer
        end = error
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        results.put(end)


def pause(failures: int, base: float) -> float:
    """Seconds to wait after a number of consecutive failures: `base` after the first, doubled by
    each further one, at most `LONGEST_WAIT`, with jitter so that clients do not retry in step."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, base * 2.0 ** min(failures - 1, 16))
