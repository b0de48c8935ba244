"""People as judges: writes a CSV sheet, in which people fill in their choices, and reads it back.

Spreadsheet programs change the delimiter, the order of columns, line ends and empty cells. So rows
are identified by a key of twelve letters, which no program converts to a number, and columns by
name.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import HumanConfig
from dpo_dist.errors import DataError, JudgeFailed
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.storage.artifacts import read_records, write_text
from dpo_dist.storage.records import Ballot, BallotOutcome
from dpo_dist.system.console import counted

COLUMNS = ("number", "conversation", "answer_1", "answer_2", "choice", "comment", "key")
OUTCOMES: dict[str, BallotOutcome] = {"1": "first", "2": "second", "tie": "tie"}  # by choice
_BOM = "\ufeff"  # without it, some programs do not recognise UTF-8
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also full-width
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class SheetRow:
    """A row of the sheet. `choice` is a key of `OUTCOMES`, or empty if not answered yet."""

    key: str
    choice: str
    comment: str
    line: int


@dataclass(frozen=True)
class Sheet:
    """The sheet's raw text, CSV dialect and parsed rows."""

    text: str = ""
    columns: tuple[str, ...] = COLUMNS
    delimiter: str = ","
    rows: tuple[SheetRow, ...] = ()


def row_key(key: str) -> str:
    """The first twelve hexadecimal digits of a comparison's key, as letters."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in key[:12])


def read_sheet(path: Path) -> Sheet:
    """The sheet, or an empty one if the file does not exist. Raises `DataError` naming file and
    line if the sheet is not UTF-8 CSV, lacks a column, or has a duplicate key or an invalid
    choice."""
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
                columns = tuple(cell.strip() for cell in cells)
                if missing := [column for column in COLUMNS if column not in columns]:
                    raise DataError(f"{path}:1: the sheet lacks the columns {', '.join(missing)}")
            elif any(cells):
                row = _row(f"{path}:{line}", line, dict(zip(columns, cells, strict=False)))
                if first := rows.get(row.key):
                    raise DataError(
                        f"{path}:{line}: the key {row.key} also appears in line {first.line}"
                    )
                rows[row.key] = row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV: {error}") from None
    if not columns:
        raise DataError(f"{path}: the sheet is empty; remove it to get a new one")
    return Sheet(text, columns, delimiter, tuple(rows.values()))


def append_to_sheet(path: Path, sheet: Sheet, rows: Sequence[tuple[str, Comparison]]) -> None:
    """Write the sheet's text unchanged, followed by a row for each (row key, comparison)."""
    new = io.StringIO(newline="")
    writer = csv.DictWriter(
        new, sheet.columns, delimiter=sheet.delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n"
    )
    if not sheet.text:
        new.write(_BOM)
        writer.writeheader()
    elif not sheet.text.endswith("\n"):
        new.write("\n")
    for number, (key, comparison) in enumerate(rows, start=len(sheet.rows) + 1):
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
    write_text(path, sheet.text + new.getvalue())


def harmless(text: str) -> str:
    """A cell's text with control characters escaped, which no program runs as a formula."""
    text = _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _row(where: str, line: int, cells: dict[str, str]) -> SheetRow:
    choice = cells.get("choice", "").strip().casefold()
    if choice and choice not in OUTCOMES:
        raise DataError(f"{where}: the choice `{choice}` is not one of {', '.join(OUTCOMES)}")
    return SheetRow(cells.get("key", "").strip(), choice, cells.get("comment", "").strip(), line)


class HumanJudge(Judge):
    """Writes the comparisons to a sheet and reads the choices from it.

    The sheet's text is never changed; missing comparisons are appended. `journal` has the ballots
    of earlier runs, whose rows are still in the sheet. If their choice was changed since, the new
    choice counts.
    """

    def __init__(self, config: HumanConfig, journal: Path) -> None:
        self._path = config.sheet
        self._journal = journal
        self.identity = f"human:{config.sheet.stem}"

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Yield all answered comparisons together. Raises `JudgeFailed` if others are left, and
        `DataError` for a sheet with foreign rows."""
        asked = {row_key(self.key(comparison)): comparison for comparison in comparisons}
        journal = read_records(self._journal, Ballot) if self._journal.exists() else ()
        earlier = {row_key(b.key): b for b in journal if b.judge == self.identity}
        if not asked and not earlier:
            return
        sheet = read_sheet(self._path)
        for row in sheet.rows:
            if row.key not in asked and row.key not in earlier:
                raise DataError(
                    f"{self._path}:{row.line}: the key `{row.key}` does not belong to this phase. "
                    "A sheet belongs to one phase of one run: name another sheet, or move this "
                    "one to another folder."
                )
        answered = [row for row in sheet.rows if row.choice]
        yield [ballot for row in answered for ballot in self._ballots(row, asked, earlier)]
        left = asked.keys() - {row.key for row in answered}
        if not left:
            return
        if missing := {key: asked[key] for key in left - {row.key for row in sheet.rows}}:
            append_to_sheet(self._path, sheet, [(key, missing[key]) for key in spread(missing)])
        raise JudgeFailed(
            f"{counted(len(left), 'comparison')} still to be judged: in {self._path}, fill in the "
            "column `choice` with 1, 2 or tie (which answer is better), save the file as UTF-8 "
            "CSV, and run the same command again. This can be done in several passes: choices "
            "already read are kept."
        )

    def _ballots(
        self, row: SheetRow, asked: Mapping[str, Comparison], earlier: Mapping[str, Ballot]
    ) -> Iterator[Ballot]:
        """The ballot of an answered row, if it is new or changed."""
        outcome = OUTCOMES[row.choice]
        if row.key in asked:
            yield self.ballot(asked[row.key], outcome, reasoning=row.comment)
        elif earlier[row.key].outcome != outcome:
            yield earlier[row.key].model_copy(update={"outcome": outcome, "reasoning": row.comment})


def spread(comparisons: Mapping[str, Comparison]) -> list[str]:
    """The keys in a random order that depends on the keys alone: every prompt once, then every
    prompt a second time, and so on.

    This separates questions on one prompt, and in particular those on the same two answers: people
    would repeat their last choice to be consistent.
    """
    by_prompt: dict[str, dict[frozenset[str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(comparisons):
        comparison = comparisons[key]
        answers = frozenset((comparison.first, comparison.second))
        by_prompt[comparison.prompt.id][answers].append(key)
    prompts = [_in_turn(list(comparisons.values())) for comparisons in by_prompt.values()]
    # Prompts with most questions come first, so that no prompt ends a round and begins the next.
    return _in_turn(sorted(prompts, key=lambda keys: (-len(keys), keys[0])))


def _in_turn(groups: Sequence[Sequence[str]]) -> list[str]:
    """The first key of every group, then the second of every group, and so on."""
    rounds = itertools.zip_longest(*groups)
    return [key for keys in rounds for key in keys if key is not None]
