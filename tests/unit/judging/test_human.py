"""A sheet that people fill in: nothing that they wrote is lost, and nothing is guessed."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_dist.config import HumanConfig
from dpo_dist.errors import DataError, JudgeFailed
from dpo_dist.judging.human import COLUMNS, HumanJudge, harmless, row_key, spread
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import Judged, judge_all, orders
from dpo_dist.judging.spend import Ledger
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Ballot
from tests.contracts.test_judges import comparison, fill_in, prefers_good
from tests.unit.judging.test_panel import comparisons, comparisons_of


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    return tmp_path / "sheet.csv"


def judge(sheet: Path) -> HumanJudge:
    return HumanJudge(HumanConfig(type="human", sheet=sheet), sheet.with_name("ballots.jsonl"))


def poll(sheet: Path, items: list[Comparison] | None = None) -> Judged:
    with Journal(sheet.with_name("ballots.jsonl"), Ballot) as journal:
        return judge_all(
            judge(sheet),
            comparisons(10) if items is None else items,
            journal,
            ledger=Ledger(),
            both_orders=True,
            seed=0,
        )


def export(sheet: Path, items: list[Comparison] | None = None) -> None:
    with pytest.raises(JudgeFailed, match="fill in the column `choice`"):
        poll(sheet, items)


def rows(sheet: Path) -> list[dict[str, str]]:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def ballots(sheet: Path) -> list[str]:
    return sheet.with_name("ballots.jsonl").read_text().splitlines()


def test_a_filled_in_sheet_becomes_the_labels(sheet: Path) -> None:
    with pytest.raises(JudgeFailed, match="20 comparisons still to be judged"):
        poll(sheet)
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf"), "the mark that spreadsheets look for"
    written = rows(sheet)
    assert tuple(written[0]) == COLUMNS and len(written) == 20
    assert [row["number"] for row in written] == [str(n) for n in range(1, 21)]
    assert {row["choice"] for row in written} == {""}
    assert not any("slot" in cell for row in written for cell in row.values()), "no name is shown"
    fill_in(sheet, prefers_good)
    for item, verdict in zip(comparisons(10), poll(sheet).verdicts, strict=True):
        assert verdict.preferred == ("slot-0" if item.first_text == "GOOD" else "slot-1")


def test_it_may_be_filled_in_in_parts(sheet: Path) -> None:
    export(sheet)
    fill_in(sheet, lambda row: prefers_good(row) if int(row["number"]) <= 7 else "")
    before = sheet.read_bytes()
    with pytest.raises(JudgeFailed, match="13 comparisons still to be judged"):
        poll(sheet)
    assert len(ballots(sheet)) == 7
    with pytest.raises(JudgeFailed, match="13 comparisons still to be judged"):
        poll(sheet)
    assert len(ballots(sheet)) == 7, "what was read is not read again"
    assert sheet.read_bytes() == before
    fill_in(sheet, prefers_good)
    assert {verdict.outcome for verdict in poll(sheet).verdicts} == {"preferred"}
    assert len(ballots(sheet)) == 20


def test_a_choice_that_was_changed_counts_as_it_stands(sheet: Path) -> None:
    export(sheet)
    fill_in(sheet, lambda row: "1" if row["number"] == "1" else "")
    export(sheet)
    fill_in(sheet, lambda row: "tie")
    judged = poll(sheet)
    assert {verdict.outcome for verdict in judged.verdicts} == {"tie"}
    assert len(ballots(sheet)) == 21
    assert {verdict.outcome for verdict in poll(sheet).verdicts} == {"tie"}
    assert len(ballots(sheet)) == 21


def test_what_the_sheet_lacks_is_appended(sheet: Path) -> None:
    export(sheet, comparisons(10))
    fill_in(sheet, prefers_good)
    before = sheet.read_bytes()
    with pytest.raises(JudgeFailed, match="4 comparisons still to be judged"):
        poll(sheet, comparisons(12))
    assert sheet.read_bytes().startswith(before)
    assert [row["number"] for row in rows(sheet)] == [str(n) for n in range(1, 25)]
    fill_in(sheet, prefers_good)
    assert {verdict.outcome for verdict in poll(sheet, comparisons(12)).verdicts} == {"preferred"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_sheet_may_come_back_as_spreadsheets_save_it(sheet: Path, delimiter: str) -> None:
    """Another delimiter, other line ends, columns moved and added, empty rows, loose spelling."""
    export(sheet, comparisons(2))
    written = rows(sheet)
    columns = ["key", "choice", "my notes", "comment", *COLUMNS[:4]]
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        for row in written:
            writer.writerow(row | {"choice": " TIE ", "comment": "so; so", "my notes": ""})
        file.write(delimiter * 7 + "\r\n\r\n")
    export(sheet, comparisons(3))
    with sheet.open(encoding="utf-8", newline="") as file:
        appended = list(csv.DictReader(file, delimiter=delimiter))[-2:]
    assert all(row["key"].isalpha() and row["choice"] == "" for row in appended)
    fill_in_text = sheet.read_text(encoding="utf-8")
    for row in appended:
        start = f'"{row["key"]}"{delimiter}"'
        fill_in_text = fill_in_text.replace(start, start + "tie")
    sheet.write_text(fill_in_text, encoding="utf-8")
    judged = poll(sheet, comparisons(3))
    assert {verdict.outcome for verdict in judged.verdicts} == {"tie"}
    assert "so; so" in ballots(sheet)[0]


def changed(column: str, value: str) -> Callable[[list[list[str]]], None]:
    """Overwrites a cell of the second row, which begins in line 4: each row has two lines."""

    def change(table: list[list[str]]) -> None:
        table[2][COLUMNS.index(column)] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed("choice", "3"), r"sheet\.csv:4: the choice `3` is not one of 1, 2, tie"),
        (changed("key", "abc"), r"sheet\.csv:4: the key `abc` does not belong to this phase"),
        (changed("key", ""), r"sheet\.csv:4: the key `` does not belong to this phase"),
        (
            lambda table: table.append(table[1]),
            r"sheet\.csv:10: the key \w+ also appears in line 2",
        ),
        (lambda table: table[0].remove("choice"), r"sheet\.csv:1: .* lacks .* choice"),
        (lambda table: table.clear(), "the sheet is empty"),
    ],
    ids=["choice", "key", "no key", "twice", "column", "empty"],
)
def test_a_damaged_sheet_is_named_with_its_line_and_left_alone(
    sheet: Path, damage: Callable[[list[list[str]]], None], message: str
) -> None:
    questions = [comparison(n, "GOOD", "bad") for n in range(4)]
    with pytest.raises(JudgeFailed):
        list(judge(sheet).compare(questions))
    fill_in(sheet, prefers_good)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file))
    damage(table)
    with sheet.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    before = sheet.read_bytes()
    with pytest.raises(DataError, match=message):
        list(judge(sheet).compare(questions))
    assert sheet.read_bytes() == before


def test_a_sheet_in_another_encoding_is_refused(sheet: Path) -> None:
    sheet.write_bytes("schön".encode("cp1252"))
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 3\): save the sheet as CSV in UTF-8"):
        poll(sheet)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("- a list", "'- a list"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\n=1", "'\n=1"),
        ("\uff1d1", "'\uff1d1"),
        ("1 = 1", "1 = 1"),
        ("a\r\nb\rc\x00\ud800", "a\nb\\x0dc\\x00\\xd800"),
        ("schön, \"ja\"; 'nein'", "schön, \"ja\"; 'nein'"),
    ],
)
def test_a_cell_is_no_formula(sheet: Path, text: str, cell: str) -> None:
    assert harmless(text) == cell
    with pytest.raises(JudgeFailed):
        list(judge(sheet).compare([comparison(0, text, "bad")]))
    assert rows(sheet)[0]["answer_1"] == cell


def test_the_questions_on_a_prompt_lie_apart() -> None:
    human = judge(Path("sheet.csv"))
    for count in (2, 3, 10, 100):
        asked = {
            human.key(question): question
            for comparison in comparisons(count)
            for question in orders(comparison, both_orders=True, seed=0, repeat=0.3)
        }
        order = [asked[key].prompt.id for key in spread(asked)]
        assert sorted(spread(asked)) == sorted(asked)
        assert all(one != next_one for one, next_one in itertools.pairwise(order))
        assert len(set(order[:count])) == count, "every prompt once before any a second time"
    shown = [asked[key].first for key in spread(asked)][:100]
    assert 35 < shown.count("slot-0") < 65


def test_a_row_s_key_is_a_word() -> None:
    assert row_key("0123456789abcdef" * 4) == "abcdefghijkl"


@pytest.mark.parametrize("slots", [3, 4])
def test_the_two_orders_of_a_comparison_are_half_a_sheet_apart(slots: int) -> None:
    human = judge(Path("sheet.csv"))
    asked = {
        human.key(question): question
        for comparison in comparisons_of(slots, 10)
        for question in orders(comparison, both_orders=True, seed=0)
    }
    order = [asked[key] for key in spread(asked)]
    assert len(order) == 10 * slots * (slots - 1)
    for start in range(0, len(order), 10):
        assert len({question.prompt.id for question in order[start : start + 10]}) == 10
    half = len(order) // 2
    compared = [
        {(q.prompt.id, *sorted((q.first, q.second))) for q in part}
        for part in (order[:half], order[half:])
    ]
    assert compared[0] == compared[1] and len(compared[0]) == half


def test_the_rows_of_a_prompt_with_several_comparisons_find_their_own_way_back(
    sheet: Path,
) -> None:
    items = [
        replace(
            item,
            first_text=f"{good(item.first)} {item.first}",
            second_text=f"{good(item.second)} {item.second}",
        )
        for item in comparisons_of(4, 5)
    ]
    export(sheet, items)
    fill_in(sheet, prefers_good)
    for item, verdict in zip(items, poll(sheet, items).verdicts, strict=True):
        a, b = good(item.first), good(item.second)
        assert verdict.between == (item.first, item.second)
        assert verdict.preferred == (None if a == b else item.first if a == "GOOD" else item.second)


def good(slot: str) -> str:
    return "GOOD" if slot in ("slot-1", "slot-2") else "bad"
