"""The sheet that people fill in: a CSV file that spreadsheet programs open and save again.

Such programs change what they like: the delimiter, the columns' order, line ends, empty cells at
the end of a row. So a row is known by its key, a word of letters that no program takes for a
number, and columns are known by their names.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.errors import DataError
from dpo_dist.judging.judge import Comparison
from dpo_dist.storage.artifacts import write_text

COLUMNS = ("number", "conversation", "answer_1", "answer_2", "choice", "comment", "key")
CHOICES = ("1", "2", "tie")
_BOM = "\ufeff"  # without it, some programs take UTF-8 for their system's own encoding
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and the full-width ones
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class SheetRow:
    """A row that came back. `choice` is one of `CHOICES`, or empty: not answered yet."""

    key: str
    choice: str
    comment: str
    line: int


@dataclass(frozen=True)
class Sheet:
    """A sheet's text as it is, how it is to be gone on with, and its rows."""

    text: str = ""
    columns: tuple[str, ...] = COLUMNS
    delimiter: str = ","
    rows: tuple[SheetRow, ...] = ()


def row_key(key: str) -> str:
    """A comparison's key (hexadecimal) for people and spreadsheets: twelve letters."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in key[:12])


def read_sheet(path: Path) -> Sheet:
    """The sheet as it stands, an empty one where there is none.

    Raises `DataError` naming file and line for a sheet that is no CSV in UTF-8, lacks a column,
    has a key twice or a choice that is none.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return Sheet()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.start}): save the sheet as CSV in UTF-8"
        ) from None
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text.removeprefix(_BOM), newline=""), delimiter=delimiter)
    columns: tuple[str, ...] = ()
    rows: dict[str, SheetRow] = {}
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = _header(path, cells)
            elif any(cells):
                row = _row(f"{path}:{line}", line, dict(zip(columns, cells, strict=False)))
                if row.key in rows:
                    raise DataError(
                        f"{path}:{line}: the key {row.key} also appears in line "
                        f"{rows[row.key].line}"
                    )
                rows[row.key] = row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}") from None
    if not columns:
        raise DataError(f"{path}: the sheet is empty; move it away to get a new one")
    return Sheet(text, columns, delimiter, tuple(rows.values()))


def append_to_sheet(path: Path, table: Sheet, rows: Sequence[tuple[str, Comparison]]) -> None:
    """Write the table's text, as it is, and a row behind it for each (row key, comparison)."""
    new = io.StringIO(newline="")
    writer = csv.DictWriter(
        new,
        table.columns,
        delimiter=table.delimiter,
        quoting=csv.QUOTE_ALL,
        lineterminator="\n",
    )
    if not table.text:
        new.write(_BOM)
        writer.writeheader()
    elif not table.text.endswith("\n"):
        new.write("\n")
    for number, (key, comparison) in enumerate(rows, start=len(table.rows) + 1):
        turns = (f"{message.role}:\n{message.content}" for message in comparison.prompt.messages)
        writer.writerow(
            {
                "number": number,
                "conversation": harmless("\n\n".join(turns)),
                "answer_1": harmless(comparison.first_text),
                "answer_2": harmless(comparison.second_text),
                "key": key,
            }
        )
    write_text(path, table.text + new.getvalue())


def harmless(text: str) -> str:
    """A cell's text that no program runs as a formula, and whose odd characters can be seen."""
    text = _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _header(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    if missing := [column for column in COLUMNS if column not in columns]:
        raise DataError(f"{path}:1: the sheet lacks the columns {', '.join(missing)}")
    return columns


def _row(where: str, line: int, cells: dict[str, str]) -> SheetRow:
    choice = cells.get("choice", "").strip().casefold()
    if choice and choice not in CHOICES:
        raise DataError(f"{where}: the choice `{choice}` is not one of {', '.join(CHOICES)}")
    return SheetRow(cells.get("key", "").strip(), choice, cells.get("comment", "").strip(), line)
