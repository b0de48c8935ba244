"""A batch of requests as it is kept on disk: what was sent, under which id, and what came back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_dist.storage.artifacts import read_json, write_json


class BatchRecord:
    """`<number>.json` is written before the batch is sent, so that one that was sent and not
    noted (a crash between the two) can be looked for; `<number>.results.jsonl` holds the API's
    own lines and is there only when all of them are.

    `keys` are the requests' `custom_id`s. `sent_at` is in seconds since the epoch. `strangers` are
    ids of batches that looked like this one and were another's.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[str],
        sent_at: float,
        batch_id: str | None = None,
        strangers: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.keys = list(keys)
        self.sent_at = sent_at
        self.batch_id = batch_id
        self.strangers = list(strangers)
        self.partial = path.with_suffix(".results.partial")
        self.results = path.with_suffix(".results.jsonl")

    @classmethod
    def intend(cls, folder: Path, keys: Sequence[str]) -> BatchRecord:
        """A record of a batch that is about to be sent."""
        numbers = [int(path.stem) for path in _paths(folder)]
        path = folder / f"{max(numbers, default=0) + 1:04d}.json"
        record = cls(path, keys, time.time())
        record.save()
        return record

    def save(self) -> None:
        write_json(
            self.path,
            {
                "batch_id": self.batch_id,
                "sent_at": self.sent_at,
                "strangers": self.strangers,
                "keys": self.keys,
            },
        )

    def sent(self, batch_id: str) -> None:
        """Note the id under which the API keeps the batch."""
        self.batch_id = batch_id
        self.save()

    def is_ours(self) -> bool:
        """Whether the results are about the requests of this record: one of them says it."""
        keys = set(self.keys)
        with self.results.open("rb") as lines:
            return any(_custom_id(line) in keys for line in lines)

    def disown(self) -> None:
        """The batch under this id was another's."""
        assert self.batch_id is not None
        self.strangers.append(self.batch_id)
        self.batch_id = None
        self.results.unlink(missing_ok=True)
        self.save()

    def forget(self) -> None:
        """The batch was never sent."""
        self.path.unlink()


def read_batches(folder: Path) -> list[BatchRecord]:
    """The batches of a folder, in the order in which they were sent."""
    return [BatchRecord(path, **read_json(path)) for path in _paths(folder)]


def _custom_id(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if re.fullmatch(r"\d+", path.stem))
