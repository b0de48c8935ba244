"""The user's own judge: a function that returns which of two answers is better."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import get_args

from dpo_dist.config import FunctionJudgeConfig
from dpo_dist.errors import ConfigError
from dpo_dist.judging.judge import Comparison, Judge, Preference, rules_digest
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.storage.records import Ballot, BallotOutcome
from dpo_dist.system.background import Put, stream
from dpo_dist.system.console import warn
from dpo_dist.system.functions import LONGEST_MESSAGE, load_function, shown_error

Batch = Sequence[Comparison]
CONCURRENCY = 8  # calls of an async function at a time, unless the run file says otherwise


class FunctionJudge(Judge):
    """Calls the function for one comparison after another, or for `batch_size` of them, and yields
    the ballots of each call at once. An async function runs `concurrency` calls at a time. A call
    that fails or returns anything but "first", "second" or "tie" gives no verdict; only the first
    such call prints a warning.

    Raises `ConfigError` if the function cannot be loaded, or if `concurrency` is set and it is not
    async.
    """

    uses_reference = True

    def __init__(self, config: FunctionJudgeConfig) -> None:
        self._function = load_function(config.path)
        self._batch_size = config.batch_size
        self._is_async = inspect.iscoroutinefunction(self._function)
        if config.concurrency is not None and not self._is_async:
            raise ConfigError(
                f"concurrency: {config.path.name} is not async, so its calls run one after the "
                "other; remove `concurrency`, or write `async def`"
            )
        self._concurrency = config.concurrency or CONCURRENCY
        self._calls = {"attempts": 1} if config.paid else {}
        self._warned = False
        (file,) = config.files.values()
        self.identity = f"{config.name}:{rules_digest([file_digest(file)])}"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        waiting = iter(comparisons)
        batches = iter(lambda: tuple(islice(waiting, self._batch_size or 1)), ())
        if self._is_async:
            return stream(lambda put: self._produce(batches, put))
        return map(self._decide, batches)

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {kind: count * len(comparisons) for kind, count in self._calls.items()}

    async def _produce(self, batches: Iterator[Batch], put: Put[Ballot]) -> None:
        async def worker() -> None:
            for batch in batches:
                for ballot in await self._decide_async(batch):
                    await put(ballot)  # returns once the ballot is on disk and in the ledger

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _decide(self, batch: Batch) -> Sequence[Ballot]:
        try:
            returned = self._function(*self._arguments(batch))
        except Exception as error:  # of the user's code
            return self._failed(batch, error)
        return self._read(batch, returned)

    async def _decide_async(self, batch: Batch) -> Sequence[Ballot]:
        try:
            call = self._function(*self._arguments(batch))
            assert inspect.isawaitable(call)
            returned: object = await call
        except Exception as error:  # of the user's code
            return self._failed(batch, error)
        return self._read(batch, returned)

    def _arguments(self, batch: Batch) -> tuple[object, object, object]:
        """(prompt, first, second), or lists of them for a function that takes batches."""
        if self._batch_size is None:
            (one,) = batch
            return one.prompt, one.first_text, one.second_text
        return (
            [comparison.prompt for comparison in batch],
            [comparison.first_text for comparison in batch],
            [comparison.second_text for comparison in batch],
        )

    def _failed(self, batch: Batch, error: Exception) -> list[Ballot]:
        problem = shown_error(error)
        return [self._ballot(comparison, "not_answered", problem) for comparison in batch]

    def _read(self, batch: Batch, returned: object) -> list[Ballot]:
        """The ballots of a call by what it returned: a verdict, or a list of them."""
        verdicts: Sequence[object] = [returned]
        if self._batch_size is not None:
            problem = ""
            if not isinstance(returned, list | tuple):
                problem = f"it returned {returned!r}, not a list"[:LONGEST_MESSAGE]
            elif len(returned) != len(batch):
                problem = f"it returned {len(returned)} verdicts on {len(batch)} comparisons"
            if problem:
                return [self._ballot(comparison, "unparsed", problem) for comparison in batch]
            assert isinstance(returned, list | tuple)
            verdicts = returned
        return [
            self._by_verdict(comparison, verdict)
            for comparison, verdict in zip(batch, verdicts, strict=True)
        ]

    def _by_verdict(self, comparison: Comparison, verdict: object) -> Ballot:
        for known in get_args(Preference):
            if isinstance(verdict, str) and verdict == known:
                return self._ballot(comparison, known)
        problem = f"it returned {verdict!r}"[:LONGEST_MESSAGE]
        return self._ballot(comparison, "unparsed", problem)

    def _ballot(self, comparison: Comparison, outcome: BallotOutcome, problem: str = "") -> Ballot:
        if problem and not self._warned:
            warn(f"no verdict on {comparison.prompt.id!r}: {problem}; others may follow")
            self._warned = True
        return self.ballot(comparison, outcome, reasoning=problem, usage=dict(self._calls))
