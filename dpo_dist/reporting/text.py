"""Makes model texts safe for terminals and Markdown, and marks the differences of two texts."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from difflib import SequenceMatcher


def visible(text: str) -> str:
    """Replace control and text-direction characters by visible names. ANSI escapes could change a
    terminal, and bidirectional controls could reverse a text. Line breaks and tabs are kept. The
    template escapes HTML."""
    return "".join(_shown(character) for character in text)


def plain_markdown(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_<>\[\]!&|~#])", r"\\\1", " ".join(text.split()))


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cc" and ord(character) < 0x20:
        return chr(0x2400 + ord(character))  # Unicode's control pictures, such as ␛ for ESC
    if category in ("Cc", "Cs") or (category == "Cf" and character != "\u200d"):
        return f"⟨U+{ord(character):04X}⟩"  # but keep U+200D, the zero-width joiner of emoji
    return character


MOST_WORDS = 1_500  # `SequenceMatcher` takes quadratic time for different texts
ALIKE = 0.25  # if less is common, nearly everything would be marked


@dataclass(frozen=True)
class Part:
    """A part of a text; `changed` if it is not in the other text."""

    text: str
    changed: bool = False


@dataclass(frozen=True)
class WordDiff:
    """Two texts in parts; `note` is the reason why no differences are marked."""

    before: tuple[Part, ...]
    after: tuple[Part, ...]
    note: str = ""


def word_diff(before: str, after: str) -> WordDiff:
    """Mark the words that differ between two texts, ignoring white space."""
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
    """The parts of a text; leading white space is never marked."""
    start = len(text) - len(text.lstrip()) if changed else 0
    parts = (Part(text[:start]), Part(text[start:], changed))
    return [part for part in parts if part.text]
