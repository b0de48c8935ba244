"""The journals of a phase's shards, read as one set of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from dpo_dist.storage.artifacts import Journal, PhaseDirectory, read_places
from dpo_dist.storage.records import Record
from dpo_dist.system.ranks import Shard

R = TypeVar("R", bound=Record)


class Journals(Generic[R]):
    """The records in the journals of all shards, by key; `own` is this shard's journal. Others may
    be growing. If several journals have a key, as after a change of the number of shards, one
    record counts. Only the keys and positions of the records are in memory."""

    def __init__(
        self, out: PhaseDirectory, stem: str, record: type[R], key: Callable[[R], str]
    ) -> None:
        self._folder, self._stem, self._record, self._key = out.path, stem, record, key
        self.own = Journal(out.path / journal_name(stem, out.shard), record)
        self._paths: list[Path] = []
        self._places: dict[str, tuple[int, int]] = {}  # by key: (journal, offset in bytes)
        self.refresh()

    def refresh(self) -> None:
        """Read the keys of the journals again."""
        self._paths = sorted(self._folder.glob(f"{self._stem}*.journal.jsonl"))
        self._places = {}
        for number, path in enumerate(self._paths):
            for offset, record in read_places(path, self._record, growing=True):
                self._places.setdefault(self._key(record), (number, offset))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, keys: Iterable[str]) -> Iterator[R]:
        """Read the records of these keys one by one, in the order of the keys."""
        files = [path.open("rb") for path in self._paths]
        try:
            for key in keys:
                number, offset = self._places[key]
                files[number].seek(offset)
                yield self._record.model_validate_json(files[number].readline())
        finally:
            for file in files:
                file.close()

    def __enter__(self) -> Journals[R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.own.close()


def journal_name(stem: str, shard: Shard) -> str:
    """The name of a shard's journal."""
    part = "" if shard.whole else f"-{shard.index}-of-{shard.count}"
    return f"{stem}{part}.journal.jsonl"
