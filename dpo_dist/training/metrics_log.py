"""metrics.jsonl: what a training logs, a line a time, each with its `step`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_dist.storage.artifacts import write_text


class MetricsLog:
    """The lines of one training, of which only its main process writes any."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def until(self, step: int) -> list[dict[str, Any]]:
        """The lines up to a step. One torn by a crash ends them: what follows is done again."""
        if not self._path.exists():
            return []
        lines = []
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if line["step"] <= step:
                lines.append(line)
        return lines

    def forget_after(self, step: int) -> None:
        """Cut off the steps that a resumed training will do again."""
        if self._path.exists():
            kept = self.until(step)
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
