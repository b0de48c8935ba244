"""What a step reports: figures, checks with their limits, notes, and the verdict from them."""

from __future__ import annotations

import json
import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["passed", "failed", "skipped"]


class Skip(Exception):
    """Ends a step that cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """A figure with a limit, and why this is the limit."""

    name: str
    value: float
    relation: Literal["<=", ">="]
    limit: float
    why: str
    passed: bool


@dataclass
class StepResult:
    """The outcome of a step. `reason` says why it was skipped or failed."""

    number: int
    name: str
    verdict: Verdict
    seconds: float
    budget: float
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Recorder:
    """Writes what a step finds to a file, line by line, so that a crash or a time-out keeps it."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._path = path
        self._deadline = deadline

    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def figure(self, name: str, value: float) -> None:
        self._write(figure=[name, float(value)])

    def check(
        self,
        name: str,
        value: float,
        *,
        most: float | None = None,
        least: float | None = None,
        why: str,
    ) -> None:
        """A figure that must be at `most` or at `least` the limit; NaN fails."""
        limit = most if least is None else least
        assert limit is not None and (most is None) != (least is None), "one limit"
        relation: Literal["<=", ">="] = "<=" if least is None else ">="
        passed = value <= limit if least is None else value >= limit
        check = Check(name, float(value), relation, float(limit), why, bool(passed))
        self._write(check=asdict(check))

    def note(self, text: str) -> None:
        self._write(note=text)

    def end(self, verdict: Verdict | None = None, reason: str = "") -> None:
        """The last line. Without a verdict the checks decide."""
        self._write(end=[verdict, reason])

    def _write(self, **event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def read_result(path: Path, result: StepResult) -> bool:
    """Add what a step's process wrote to its result; whether the step came to its end."""
    ended = False
    for line in path.read_text(encoding="utf-8").splitlines():
        ((kind, value),) = json.loads(line).items()
        match kind:
            case "figure":
                result.figures[value[0]] = value[1]
            case "check":
                result.checks.append(Check(**value))
            case "note":
                result.notes.append(value)
            case "end":
                ended = True
                verdict, result.reason = value
                result.verdict = verdict or result.verdict
    missed = [check.name for check in result.checks if not check.passed]
    if missed and result.verdict != "failed":
        result.verdict = "failed"
        result.reason = f"beyond its limit: {', '.join(missed)}"
    return ended


@dataclass(frozen=True)
class Step:
    """A step of the kit: `run` is "module:function", called with a `Recorder`, a `Scale` and a
    folder; `budget` is its limit in seconds, with the imports."""

    number: int
    name: str
    budget: float
    run: str


def number(value: float) -> str:
    """A figure with about four digits."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def show(result: StepResult) -> None:
    """Print a step's verdict, its checks with their limits, and its other figures."""
    reason = f": {result.reason}" if result.reason else ""
    took = f"{result.seconds:.0f} s of {result.budget:.0f}"
    print(f"\n{result.number}. {result.name}: {result.verdict.upper()}{reason} ({took})")
    for check in result.checks:
        mark = "ok" if check.passed else "X "
        print(
            f"  {mark} {check.name}: {number(check.value)} {check.relation} {number(check.limit)}"
        )
        if not check.passed:
            print(textwrap.indent(textwrap.fill(f"why this limit: {check.why}", 90), "       "))
    width = max(map(len, result.figures), default=0)
    for name, value in result.figures.items():
        print(f"     {name:<{width}}  {number(value):>12}")
    for note in result.notes:
        print(f"     ({note})")


def write_json(
    path: Path, results: Sequence[StepResult], *, quick: bool, versions: dict[str, str]
) -> None:
    content = {
        "quick": quick,
        "versions": versions,
        "seconds": sum(result.seconds for result in results),
        "steps": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
