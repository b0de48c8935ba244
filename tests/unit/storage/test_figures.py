"""Figures in JSON files: versioned where they are written, checked where they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.errors import DataError
from dpo_dist.storage.figures import Figures, parse_figures, read_figures, write_figures


class Inner(Figures):
    mean: float | None


class Outer(Figures):
    name: str
    parts: tuple[Inner, ...]


OUTER = Outer(name="ü", parts=(Inner(mean=0.5), Inner(mean=None)))
VALUES = {"name": "ü", "parts": [{"mean": 0.5}, {"mean": None}]}


def test_what_was_written_is_read_back_with_the_version_first(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_figures(path, OUTER)
    assert json.loads(path.read_text()) == {"schema_version": 1, **VALUES}
    assert path.read_text().startswith('{\n  "schema_version": 1')
    assert read_figures(path, Outer) == OUTER


def test_a_file_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(VALUES))
    assert read_figures(path, Outer) == OUTER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": ', r"f\.json: damaged \(not JSON\)"),
        ("[1]", r"f\.json: damaged"),
        ('"x"', r"f\.json: damaged"),
        ('{"schema_version": 2, "name": "a"}', r"f\.json was written by another version .*2; .*1"),
        ('{"name": "a"}', r"f\.json: damaged \(parts: Field required\)"),
        ('{"name": "a", "parts": [{"mean": "much"}]}', r"f\.json: damaged \(parts\.0\.mean: "),
    ],
)
def test_damaged_files_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_figures(path, Outer)


def test_values_that_are_no_figures_name_their_source() -> None:
    with pytest.raises(DataError, match=r"the table: damaged \(the content: "):
        parse_figures([1], Outer, "the table")
