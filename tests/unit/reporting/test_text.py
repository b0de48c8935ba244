"""Texts of models made visible, and what tells two of them apart."""

from __future__ import annotations

import pytest

from dpo_dist.reporting.text import MOST_WORDS, Part, visible, word_diff


def test_control_and_direction_characters_are_shown() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b[0m\x00\x7f\u200f\ud800") == "␛[0m␀⟨U+007F⟩⟨U+200F⟩⟨U+D800⟩"
    assert visible("👩\u200d🚀 שלום") == "👩\u200d🚀 שלום"


def test_words_that_differ_are_marked_in_both_texts() -> None:
    found = word_diff("the cat sat down", "the dog sat\n down today")
    assert found.before == (Part("the"), Part(" "), Part("cat", True), Part(" sat down"))
    assert "".join(part.text for part in found.after) == "the dog sat\n down today"
    assert [part.text for part in found.after if part.changed] == ["dog", "today"]
    assert found.note == ""


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ("same\n", "same\n", "same answer"),
        ("a b c d", "w x y z", "little in common"),
        ("word " * (MOST_WORDS + 1), "word", "not marked"),
    ],
)
def test_where_nothing_is_marked_the_page_says_why(before: str, after: str, note: str) -> None:
    found = word_diff(before, after)
    assert note in found.note
    assert (found.before, found.after) == ((Part(before),), (Part(after),))


@pytest.mark.parametrize(("before", "after"), [("", ""), ("", "a"), (" a ", "a"), ("a\n\n", "")])
def test_no_character_is_lost(before: str, after: str) -> None:
    found = word_diff(before, after)
    assert "".join(part.text for part in found.before) == before
    assert "".join(part.text for part in found.after) == after
