"""What the shards of a phase have written: every one its own journal, all of them one set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from dpo_dist.storage.artifacts import Journal, PhaseDirectory, read_places
from dpo_dist.storage.records import Record
from dpo_dist.system.ranks import Shard

R = TypeVar("R", bound=Record)


class Journals(Generic[R]):
    """The journal `own` of this shard, and where in those of all shards each key's record lies.

    The journals of others may be growing. What more than one has answered, as after a change of
    the number of shards, counts once. Only keys and places are held in memory, not the records.
    """

    def __init__(
        self, out: PhaseDirectory, stem: str, record: type[R], key: Callable[[R], str]
    ) -> None:
        self._folder, self._stem, self._record, self._key = out.path, stem, record, key
        self.own = Journal(out.path / journal_name(stem, out.shard), record)
        self._paths: list[Path] = []
        self._places: dict[str, tuple[int, int]] = {}  # key: journal, offset in bytes
        self.refresh()

    def refresh(self) -> None:
        """Look again at what has been written."""
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
        """The records of these keys, in their order, read one by one."""
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
    """The file that the process with this shard appends to."""
    part = "" if shard.whole else f"-{shard.index}-of-{shard.count}"
    return f"{stem}{part}.journal.jsonl"
