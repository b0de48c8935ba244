"""Separates the thought of a thinking model from its answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What opens and closes a thought: Qwen, DeepSeek, GLM and others; gpt-oss; Muse; Gemma 4; Cohere;
# Magistral; Seed.
MARKS = (
    ("<think>", "</think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("to=self<|message|>", "to=user<|message|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
TURN_START = 16  # tokens at the end of a prompt among which the template may open a thought


@dataclass(frozen=True)
class Spoken:
    """An answer without its thought, and the thought (empty: none). An answer that was cut off
    within its thought is empty."""

    text: str
    thought: str = ""


def openings(text: str) -> int:
    """How many thoughts a text opens."""
    return sum(text.count(opening) for opening, _ in MARKS)


def spoken(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: Sequence[int], text: str
) -> Spoken:
    """Separate a sampled answer. `text` is the answer without special tokens, among which the marks
    may be. Only a thought that begins the answer counts; the prompt may already open it."""
    turn = str(tokenizer.decode(prompt[-TURN_START:])).rstrip()
    whole = str(tokenizer.decode(answer))
    for opening, closing in MARKS:
        inside = turn.endswith(opening)
        if not inside and not whole.lstrip().startswith((opening, closing)):
            continue
        if closing not in whole:
            for token in tokenizer.all_special_tokens:
                whole = whole.removesuffix(token)
            return Spoken("", _thought(whole, opening, closing))
        # The number of tokens up to the closing mark, which may be several.
        end = bisect_left(
            range(len(answer) + 1), True, key=lambda n: closing in tokenizer.decode(answer[:n])
        )
        rest = str(tokenizer.decode(answer[end:], skip_special_tokens=True))
        return Spoken(
            rest.lstrip(), _thought(str(tokenizer.decode(answer[:end])), opening, closing)
        )
    return Spoken(text)


def _thought(text: str, opening: str, closing: str) -> str:
    thought = text.strip().removeprefix(opening).partition(closing)[0]
    return thought.partition("<|end|>")[0].strip()  # where gpt-oss begins its answer
