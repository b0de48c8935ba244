"""Model text made harmless: what a browser or terminal would act on is shown, not done."""

from __future__ import annotations

import re
import unicodedata


def visible(text: str) -> str:
    """Replace control and direction characters by what names them.

    ANSI escapes could recolour a terminal, bidirectional controls could reverse what is read.
    Line breaks and tabs stay. HTML is escaped elsewhere, by the template.
    """
    return "".join(_shown(character) for character in text)


def plain_markdown(text: str) -> str:
    """The text on one line, with what Markdown would act on escaped."""
    return re.sub(r"([\\`*_<>\[\]!&|~#])", r"\\\1", " ".join(text.split()))


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cc" and ord(character) < 0x20:
        return chr(0x2400 + ord(character))  # the control pictures block: ␛ for ESC
    if category in ("Cc", "Cs") or (category == "Cf" and character != "\u200d"):
        return f"⟨U+{ord(character):04X}⟩"  # the zero-width joiner holds emoji together
    return character
