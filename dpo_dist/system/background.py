"""Asynchronous work behind an ordinary iterator, and its waits after a failure."""

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
    produce: Callable[[Put[T]], Coroutine[Any, Any, None]],
) -> Generator[list[T], None, None]:
    """Run `produce(put)` on an event loop in a thread of its own and yield what it puts: whatever
    has come in since the last time, together.

    `await put(item)` returns once the consumer has come back for more: what is slow here is
    waited for there. An error of `produce` is raised here, after all that it has put. A
    consumer that stops early, by an error or Ctrl-C, cancels `produce`.
    """
    results: queue.SimpleQueue[tuple[T, asyncio.Event] | BaseException | None]
    results = queue.SimpleQueue()

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
            # At least one; an end is the last that is put.
            came = [results.get(), *(results.get() for _ in range(results.qsize()))]
            group = [result for result in came if isinstance(result, tuple)]
            if group:
                yield [item for item, _ in group]
            with suppress(RuntimeError):  # closed: it has failed meanwhile
                for _, taken in group:
                    loop.call_soon_threadsafe(taken.set)
            ended = len(group) < len(came)
            if isinstance(came[-1], BaseException):
                raise came[-1]
    finally:
        with suppress(RuntimeError):  # closed: there is nothing left to cancel
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _finish(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    results: queue.SimpleQueue[Any],
) -> None:
    """Run the task to its end; then None, or its error, is the last of the results."""
    end: BaseException | None = None
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseException as error:  # handed to the consumer, whose error it is
        end = error
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        results.put(end)


def pause(failures: int, base: float) -> float:
    """Seconds to wait after that many failures in a row: `base`, doubled by each one after the
    first, at most `LONGEST_WAIT`, and jittered so that not all come back at once."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, base * 2.0 ** min(failures - 1, 16))
