"""What is wrong with a pair of answers before anybody is asked about it."""

from __future__ import annotations

import re

# Tokens by which chat templates tell the turns apart (ChatML, Llama 2 and 3, Gemma, Mistral, ...).
# In an answer's text they mean that the model ran on past its own turn; as `chosen` they would be
# tokenized as the control tokens that they imitate.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[bp]os>|<eos>"
)


def why_not_judged(a: str, b: str) -> str | None:
    """The reason why two answers are not worth a judgement, or None.

    `empty`; `identical`; `near_identical`: the same words, apart from case and white space;
    `control_token`: one holds a token of a chat template.
    """
    if not a.strip() or not b.strip():
        return "empty"
    if a.strip() == b.strip():
        return "identical"
    if _words(a) == _words(b):
        return "near_identical"
    if CONTROL_TOKEN.search(a) or CONTROL_TOKEN.search(b):
        return "control_token"
    return None


def _words(text: str) -> list[str]:
    return text.casefold().split()
