"""Which words of an answer are not in another one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

MOST_WORDS = 1_500  # the matcher takes quadratic time where texts have little in common
ALIKE = 0.25  # below it nearly everything would be marked, which says nothing


@dataclass(frozen=True)
class Part:
    """A stretch of a text; `changed` where the other text lacks it."""

    text: str
    changed: bool = False


@dataclass(frozen=True)
class WordDiff:
    """Two texts in parts, and why nothing is marked where nothing is."""

    before: tuple[Part, ...]
    after: tuple[Part, ...]
    note: str = ""


def word_diff(before: str, after: str) -> WordDiff:
    """The words that only one of two texts has at that place; white space does not count."""
    whole = (Part(before),), (Part(after),)
    if before == after:
        return WordDiff(*whole, "same answer as SFT")
    old, new = re.findall(r"\s*\S+|\s+$", before), re.findall(r"\s*\S+|\s+$", after)
    if max(len(old), len(new)) > MOST_WORDS:
        return WordDiff(*whole, f"more than {MOST_WORDS:,} words: differences not marked")
    old_words, new_words = ([word.strip() for word in text] for text in (old, new))
    matcher = SequenceMatcher(None, old_words, new_words, autojunk=False)
    if matcher.ratio() < ALIKE:
        return WordDiff(*whole, "little in common with SFT: differences not marked")
    left: list[Part] = []
    right: list[Part] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        left += _parts("".join(old[i:j]), kind != "equal")
        right += _parts("".join(new[k:m]), kind != "equal")
    return WordDiff(tuple(left), tuple(right))


def _parts(text: str, changed: bool) -> list[Part]:
    """The text's parts: white space before what has changed is not marked."""
    start = len(text) - len(text.lstrip()) if changed else 0
    parts = (Part(text[:start]), Part(text[start:], changed))
    return [part for part in parts if part.text]
