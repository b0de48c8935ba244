"""At which validations the KL is measured, so that it takes at most a share of the training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class KlShare:
    """Spreads as many measurements as the share allows evenly over the validations, up to the last
    one. The first validation always has one: until then, the cost of a measurement is unknown."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._costs: list[float] = []  # seconds
        self._validations = 0
        self._since = time.monotonic()
        self._first_step = 0

    def due(self, step: int, max_steps: int, every: int) -> bool:
        """Whether to measure at this validation, after `step` of `max_steps` steps; there is a
        validation `every` so many steps."""
        number, self._validations = self._validations, self._validations + 1
        if number == 0:
            self._since, self._first_step = time.monotonic(), step
            return True
        seconds = time.monotonic() - self._since - sum(self._costs)
        total = seconds / (step - self._first_step) * max_steps
        last = number + (max_steps - step) // every
        further = int(self._max_share * total / max(self._costs)) - 1  # after the first
        if further >= last:
            return True
        return further > 0 and number * further // last > (number - 1) * further // last

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time a measurement."""
        started = time.monotonic()
        yield
        self._costs.append(time.monotonic() - started)
