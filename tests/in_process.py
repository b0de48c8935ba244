"""`run` and `sweep` without new processes, most of whose time is the import of torch and TRL.

tests/integration/test_pipeline.py runs every phase in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from dpo_dist.cli import main
from dpo_dist.phases import pipeline
from dpo_dist.system.processes import run_to_end
from dpo_dist.training import supervise


class Killed(BaseException):
    """Stands for the end of `run` between two phases."""


@contextmanager
def in_this_process(killed_before: tuple[str, int] | None = None) -> Iterator[None]:
    """Phases, and their trainings on one process, run in this process. Instead of starting the
    phase and round `killed_before`, `run` ends with `Killed`."""

    def run_phase(command: Sequence[str], env: Mapping[str, str], **_: object) -> int:
        words = list(command[3:])  # without `python -m dpo_dist`
        if killed_before and (words[0], *words[-2:]) == (
            *(killed_before[0], "--round", str(killed_before[1])),
        ):
            raise Killed
        with _environment(env):
            return main(words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_to_end", run_phase)
        patch.setattr(supervise, "run_to_end", _training)
        yield


def _training(command: Sequence[str], env: Mapping[str, str], **options: Any) -> int:
    """What the rank of a training on one process does; several are started."""
    if command[1:3] != ["-m", "dpo_dist"]:
        return run_to_end(command, env, **options)
    with _environment(env):
        return main(command[3:])


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield
