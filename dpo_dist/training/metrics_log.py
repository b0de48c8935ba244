"""metrics.jsonl: the log of a training, one JSON object with a `step` per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.storage.artifacts import write_text


@dataclass(frozen=True)
class MetricLine:
    """A line of metrics.jsonl: the metrics of a step, or an alarm."""

    step: int
    values: Mapping[str, float]
    alarm: str = ""
    message: str = ""

    @classmethod
    def parse(cls, line: str | bytes) -> MetricLine:
        """Raises `ValueError` if the line is not valid."""
        values = json.loads(line)
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            raise ValueError("not a JSON object with a step")
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        alarm, message = values.get("alarm", ""), values.get("message", "")
        return cls(values["step"], numbers, str(alarm), str(message))


def read_metrics(path: Path, until: int | None = None) -> list[MetricLine]:
    """The lines up to the step `until`, or all. Reading stops at a line that a crash cut short: the
    resumed training logs the following steps again."""
    return [line for _, line in _read(path, until)]


class MetricsLog:
    """The log of one training. Only the main process writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, step: int) -> None:
        """Remove the lines after `step`, which a resumed training logs again."""
        if self.path.exists():
            write_text(self.path, "".join(f"{text}\n" for text, _ in _read(self.path, step)))


def _read(path: Path, until: int | None) -> list[tuple[str, MetricLine]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = MetricLine.parse(text)
        except ValueError:
            break
        if until is None or line.step <= until:
            lines.append((text, line))
    return lines
