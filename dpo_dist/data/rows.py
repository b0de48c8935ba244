"""Rows of data sources, after renaming and ignoring columns; checks of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import DataSource
from dpo_dist.data.hygiene import encodable
from dpo_dist.data.readers import ROW_GROUP, Row, local_files, raw_rows, source_name
from dpo_dist.errors import DataError
from dpo_dist.storage.artifacts import file_digest


def read_rows(source: DataSource) -> Iterator[Row]:
    """Read the rows of a source one by one, at most `limit`, with the source's `columns` renamed.
    Raises `DataError` naming file and line, and if there are no rows."""
    ignored = frozenset(source.ignore_columns)
    row = None
    for row in islice(raw_rows(source), source.limit):
        yield Row(row.place, _renamed(row, source.columns, ignored), ignored)
    if row is None:
        raise DataError(f"{source_name(source)}: no rows")


def source_identity(source: DataSource) -> dict[str, JsonValue]:
    """The identity of a source's content in a fingerprint."""
    if source.path is None:
        fields = ("dataset", "name", "split", "revision")
        hub = {key: value for key in fields if (value := getattr(source, key)) is not None}
        return {**hub, "limit": source.limit}
    files = [file_digest(path) for path in local_files(source)]
    return {"sha256": files[0] if len(files) == 1 else list(files), "limit": source.limit}


def _renamed(row: Row, columns: Mapping[str, str], ignored: frozenset[str]) -> dict[str, object]:
    """The row's values without nulls, renamed."""
    values = {key: value for key, value in row.values.items() if key not in ignored}
    for theirs in columns.values():
        if theirs not in values:
            raise row.error(f"`columns` names `{theirs}`; the row has {', '.join(values)}")
    renamed = {ours: values.pop(theirs) for ours, theirs in columns.items()}
    if twice := sorted(renamed.keys() & values.keys()):
        raise row.error(
            f"`columns` gives the name `{twice[0]}` to another column, but the row has one of this "
            f"name: add `{twice[0]}` to `ignore_columns`"
        )
    return {key: value for key, value in (renamed | values).items() if value is not None}


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
