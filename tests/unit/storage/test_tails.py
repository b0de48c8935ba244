"""Following files that grow, are cut, replaced and moved away."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.storage.artifacts import write_text
from dpo_dist.storage.tails import Tail, Watched


class Reader:
    """Keeps what a tail gives it."""

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self.lines: list[bytes] = []

    def look(self) -> list[bytes]:
        self.tail.look(self.lines.append, self.lines.clear)
        return self.lines


def test_a_torn_last_line_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    reader = Reader(path)
    assert reader.look() == []
    path.write_bytes(b"one\ntw")
    assert reader.look() == [b"one\n"] == reader.look()
    with path.open("ab") as file:
        file.write(b"o\n")
    assert reader.look() == [b"one\n", b"two\n"]


def test_only_new_bytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\n")
    reader = Reader(path)
    reader.look()
    with path.open("r+b") as file:
        file.write(b"XXX")  # in place: nobody looks there again
        file.seek(0, 2)
        file.write(b"three\n")
    assert reader.look() == [b"one\n", b"two\n", b"three\n"]


def test_what_was_replaced_cut_or_moved_away_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\n")
    reader = Reader(path)
    reader.look()
    write_text(path, "one\nother\nmore\n")  # longer than before, and another file
    assert reader.look() == [b"one\n", b"other\n", b"more\n"]
    with path.open("r+b") as file:
        file.truncate(4)
    assert reader.look() == [b"one\n"]
    path.rename(tmp_path / "old")
    assert reader.look() == []
    path.write_bytes(b"again\n")
    assert reader.look() == [b"again\n"]


def test_the_journals_are_counted_as_they_grow(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ["c*.journal.jsonl"])
    assert watched.look() == 0
    first, second = (tmp_path / f"c-{n}-of-2.journal.jsonl" for n in range(2))
    first.write_text(
        '{"finish_reason":"length"}\n{"text":"\\"finish_reason\\":\\"length\\""}\n{"te'
    )
    assert watched.look() == 2
    assert watched.note == "50 % cut off"
    second.write_text("{}\n{}\n")
    with first.open("a") as file:
        file.write('xt":""}\n')
    assert watched.look() == 3
    assert (watched.records, watched.cut_off) == (5, 1)
