"""Reads the rows of files, folders and Hub datasets one by one, each with its place.

`datasets` resolves folders, and reads what it saved and what is on the Hub. Text files are read
here: its readers give no lines, guess types ("NA" in a CSV becomes null) and give all rows the keys
of all others.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dpo_dist.config import DataSource
from dpo_dist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ROW_GROUP = 2_000  # number of rows in memory while a parquet file is read or written
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Row:
    """A raw row and its place, such as `data/prompts.jsonl:17`. Null columns are absent. `ignored`
    are the names in the source's `ignore_columns`."""

    place: str
    values: dict[str, Any]
    ignored: frozenset[str] = frozenset()

    def error(self, message: str) -> DataError:
        return DataError(f"{self.place}: {message}")


def source_name(source: DataSource) -> str:
    """The name of a source in messages."""
    if source.path is not None:
        return str(source.path) if source.split is None else f"{source.path} ({source.split})"
    configuration = f", {source.name}" if source.name else ""
    return f"{source.dataset} ({source.split}{configuration})"


def raw_rows(source: DataSource) -> Iterator[Row]:
    """The rows as they are. Raises `DataError` naming file and line."""
    if source.path is None:
        yield from _from_hub(source)
    elif _is_saved(source.path):
        yield from _from_disk(source.path, source.split)
    else:
        for path in local_files(source):
            yield from _from_file(path)


def local_files(source: DataSource) -> list[Path]:
    """The files of a source with a path, in order. Raises `DataError` if there are none."""
    assert source.path is not None
    path = source.path
    if path.is_file():
        return [path]
    if _is_saved(path):
        return sorted(found for found in path.rglob("*") if found.is_file())
    if path.is_dir():
        return _files_of_folder(path, source)
    found = sorted(Path(name) for name in glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        raise DataError(f"{path}: no such file")
    return found


def _files_of_folder(path: Path, source: DataSource) -> list[Path]:
    """The files of a split, as `datasets` finds them, from their names or the folder's card."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(path), name=source.name)
        splits = {str(key): files for key, files in (builder.config.data_files or {}).items()}
    except Exception as error:  # the errors of `datasets` share no base class
        raise DataError(f"{path}: not a folder with data files: {error}") from None
    split = source.split or (next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        raise DataError(f"{path}: choose a `split` of this folder: {', '.join(splits)}")
    return [Path(name) for name in splits[split]]


def _from_file(path: Path) -> Iterator[Row]:
    packed = path.suffix == ".gz"
    suffix = (Path(path.stem) if packed else path).suffix.lower()
    if suffix == ".parquet" and not packed:
        yield from _from_parquet(path)
        return
    if suffix not in JSON_SUFFIXES + TABLE_SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: unknown kind of file; known are {known}, and .gz of text")
    try:
        with gzip.open(path) if packed else path.open("rb") as opened:
            file = cast("BinaryIO", opened)
            if suffix in TABLE_SUFFIXES:
                yield from _from_table(path, file, "\t" if suffix == ".tsv" else ",")
            elif opened.peek(64).removeprefix(_BOM).lstrip().startswith(b"["):
                yield from _from_array(path, file)
            else:
                yield from _from_lines(path, file)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None


def _from_lines(path: Path, file: BinaryIO) -> Iterator[Row]:
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
        yield _object(place, values)


def _from_array(path: Path, file: BinaryIO) -> Iterator[Row]:
    """The objects of a JSON array. The file's text is in memory, but one object at a time."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    decoder = json.JSONDecoder()
    line, counted, start = 1, 0, _after_space(text, text.index("[") + 1)
    try:
        while not text.startswith("]", start):
            line, counted = line + text.count("\n", counted, start), start
            values, end = decoder.raw_decode(text, start)
            yield _object(f"{path}:{line}", values)
            end = _after_space(text, end)
            if text.startswith("]", end):
                start = end
                break
            if not text.startswith(",", end):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            start = _after_space(text, end + 1)
            if text.startswith("]", start):
                raise json.JSONDecodeError("Illegal trailing comma", text, end)
        if text[start + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, start + 1)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error}") from None


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _object(place: str, values: object) -> Row:
    if not isinstance(values, dict):
        raise DataError(f"{place}: expected an object, found {type(values).__name__}")
    return Row(place, values)


def _from_table(path: Path, file: BinaryIO, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is a long answer
    text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    line = 1
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: two columns have the same name")
        line = reader.line_num + 1
        for values in reader:
            place = f"{path}:{line}"
            if None in values or None in values.values():
                raise DataError(f"{place}: expected {len(header)} columns, as in the first line")
            yield Row(place, values)
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{line}: not UTF-8 from here on ({error.reason})") from None
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}") from None
    finally:
        text.detach()  # the caller closes the file


def _from_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(ROW_GROUP)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, values in enumerate(rows, start=1):
            yield Row(f"{path}: row {number}", _without_fills(values))
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_disk(path: Path, split: str | None) -> Iterator[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the errors of `datasets` share no base class
        raise DataError(f"{path}: cannot load: {error}") from None
    if isinstance(saved, Mapping):
        chosen = split or (next(iter(saved)) if len(saved) == 1 else None)
        if chosen not in saved:
            raise DataError(f"{path}: choose a `split` of this dataset: {', '.join(saved)}")
        saved, split = saved[chosen], chosen
    elif split is not None and str(saved.split) != split:
        raise DataError(f"{path}: a single dataset; remove `split`")
    yield from _from_dataset(saved, f"{path}:{split}" if split else str(path))


def _from_hub(source: DataSource) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(
            str(source.dataset), source.name, split=source.split, revision=source.revision
        )
    except Exception as error:  # the hub client's errors share no base class
        raise DataError(f"{source_name(source)}: cannot load: {error}") from None
    yield from _from_dataset(rows, f"{source.dataset}:{source.split}")


def _from_dataset(rows: Dataset, name: str) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name}: row {number}", _without_fills(values))


def _without_fills(values: dict[str, Any]) -> dict[str, Any]:
    """A row without the null fields with which Arrow fills objects of different keys."""
    return {key: _present(value) for key, value in values.items()}


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(own) for key, own in value.items() if own is not None}
    return [_present(own) for own in value] if isinstance(value, list) else value
