"""Reads rows of a local JSONL or parquet file or of a Hub dataset, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dpo_dist.config import DataSource
from dpo_dist.data.hygiene import encodable
from dpo_dist.errors import DataError
from dpo_dist.storage.artifacts import file_digest
from dpo_dist.storage.records import Message

ROW_GROUP = 2_000  # number of rows in memory while a parquet file is read or written


@dataclass(frozen=True)
class Row:
    """A raw row and its place, such as `data/prompts.jsonl:17`."""

    place: str
    values: dict[str, Any]

    def error(self, message: str) -> DataError:
        return DataError(f"{self.place}: {message}")


def read_rows(source: DataSource) -> Iterator[Row]:
    """Read the rows of a source one by one, at most `limit`. Raises `DataError` naming file and
    line, and if there are no rows."""
    row = None
    for row in islice(_iterate(source), source.limit):
        yield row
    if row is None:
        raise DataError(f"{source.path or source.dataset}: no rows")


def source_identity(source: DataSource) -> dict[str, JsonValue]:
    """The identity of a source's content in a fingerprint."""
    if source.path is None:
        return {"dataset": source.dataset, "split": source.split, "limit": source.limit}
    if not source.path.is_file():
        raise DataError(f"{source.path}: no such file")
    return {"sha256": file_digest(source.path), "limit": source.limit}


def _iterate(source: DataSource) -> Iterator[Row]:
    if source.path is None:
        return _from_hub(str(source.dataset), str(source.split))
    if not source.path.is_file():
        raise DataError(f"{source.path}: no such file")
    if source.path.suffix == ".parquet":
        return _from_parquet(source.path)
    if source.path.suffix in (".jsonl", ".ndjson"):
        return _from_jsonl(source.path)
    raise DataError(f"{source.path}: expected a .jsonl or .parquet file")


def _from_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 (byte {error.start} of the line)") from None
            except json.JSONDecodeError as error:
                raise DataError(f"{place}: not JSON: {error}") from None
            if not isinstance(values, dict):
                raise DataError(f"{place}: expected an object, found {type(values).__name__}")
            yield Row(place, values)


def _from_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(ROW_GROUP)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, values in enumerate(rows, start=1):
            yield Row(f"{path}: row {number}", values)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None


def _from_hub(dataset: str, split: str) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(dataset, split=split)
    except Exception as error:  # the hub client's errors share no base class
        raise DataError(f"{dataset} ({split}): cannot load: {error}") from None
    for number, values in enumerate(rows, start=1):
        yield Row(f"{dataset}:{split}: row {number}", dict(values))


def messages_of(row: Row, key: str, role: str) -> tuple[Message, ...]:
    """The conversation under `key`: a list of messages, or a text as one message of `role`."""
    value = row.values.get(key)
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise row.error(f"`{key}` is missing or empty; expected a text or a list of messages")
    messages = turns_of(row, key, value)
    if not messages[-1].content.strip():
        raise row.error(f"`{key}` ends with an empty turn")
    return messages


def turns_of(row: Row, key: str, values: Iterable[Any]) -> tuple[Message, ...]:
    """Check the turns under `key` and convert them to messages."""
    try:
        messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in values)
    except (KeyError, TypeError, ValueError):
        raise row.error(
            f"`{key}` has a turn that is not {{'role': system|user|assistant, 'content': text}}"
        ) from None
    for message in messages:
        check_text(row, key, message.content)
    return messages


def check_text(row: Row, key: str, text: str) -> None:
    """Raise `DataError` for NUL and unpaired surrogates, which tokenizers and APIs refuse."""
    if not encodable(text):
        raise row.error(f"`{key}` holds a NUL character or an unpaired surrogate")


def write_parquet(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows with the same columns as parquet, atomically, and return the path."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    waiting = iter(rows)
    first = pyarrow.Table.from_pylist(list(islice(waiting, ROW_GROUP)))
    with pyarrow.parquet.ParquetWriter(partial, first.schema) as writer:
        writer.write_table(first)
        while group := list(islice(waiting, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, first.schema))
    partial.replace(path)
    return path
