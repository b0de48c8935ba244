"""Finds pairs of answers that are not worth judging."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher

# Tokens that separate turns in chat templates (ChatML, Llama 2 and 3, Gemma, Mistral, ...). In an
# answer, they mean that the model continued after its own turn. In training, they would be
# tokenized as control tokens.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[bp]os>|<eos>"
)

# Training on pairs this similar lowers the likelihood of both answers (Razin et al. 2024, arXiv
# 2410.08847); the threshold is our choice.
NEAR_IDENTICAL = 0.95

_UNABLE = (
    r"(?:can(?:no|')t|can not|won't|will not|(?:am|'m) (?:not able|unable|not allowed)(?: to)?"
    r"|must (?:\w+ )?(?:decline|refuse)|do(?:n't| not) have (?:the ability|the capability|access))"
)
_REQUEST = r"(?:that|this|these|those|such|any|your|you)\b"
_HELP = (
    rf"(?:assist|comply|help (?:you|with)|fulfill? {_REQUEST}"
    r"|(?:answer|continue|create|discuss|engage in|generate|participate in|produce|provide|share"
    rf"|write) {_REQUEST}"
    r"|(?:give|offer|provide) (?:advice|assistance|guidance|help|information|instructions)\b)"
)
# After an apology or "As an AI", every "I can't" is a refusal, except phrases of letters ("I can't
# attend") and "I can't ..., but I can". Otherwise, only "I can't" with a verb of helping is one.
_REFUSAL = re.compile(
    r"[\W_]*(?:"
    r"(?:i(?:'m| am) (?:\w+ )?sorry|sorry|my apologies|i apologi[sz]e)[,.:;!]? (?:but )?"
    rf"i ?{_UNABLE}(?! (?:agree|attend|be there|come|help but|join|make it|wait)\b)"
    r"|as an (?:ai|artificial intelligence)(?: large)?(?: language)?"
    rf"(?: (?:model|assistant|system|chatbot))?, i ?{_UNABLE}(?![^.!?]*\bbut (?:i|here|let)\b)"
    rf"|(?:unfortunately, )?i ?{_UNABLE} {_HELP}"
    r")",
    re.IGNORECASE,
)


def drop_reason(a: str, b: str) -> str | None:
    """The reason why a pair of answers is dropped before judging, or None. `empty`; `identical`;
    `near_identical`: see `similar`; `control_token`: an answer contains a token of a chat template;
    `unencodable`: see `encodable`."""
    if not a.strip() or not b.strip():
        return "empty"
    if a.strip() == b.strip():
        return "identical"
    if similar(a, b):
        return "near_identical"
    if CONTROL_TOKEN.search(a) or CONTROL_TOKEN.search(b):
        return "control_token"
    if not encodable(a) or not encodable(b):
        return "unencodable"
    return None


def similar(a: str, b: str) -> bool:
    """Whether at least `NEAR_IDENTICAL` of the words of both texts match, in order. Case and white
    space are ignored. In answers of fewer than 20 words, a single differing word makes the texts
    different."""
    # `SequenceMatcher` depends on the order of its arguments; sorting makes the result symmetric.
    first, second = sorted((a.casefold().split(), b.casefold().split()))
    needed = NEAR_IDENTICAL * (len(first) + len(second)) / 2
    # The number of common words, in any order, is an upper bound of the number of matches.
    if min(len(first), len(second)) < needed or (Counter(first) & Counter(second)).total() < needed:
        return False
    return SequenceMatcher(None, first, second, autojunk=False).ratio() >= NEAR_IDENTICAL


def looks_like_refusal(text: str) -> bool:
    """Whether an answer starts like an English refusal. Examples: "I'm sorry, but I can't ...", "As
    an AI language model, I cannot ...", "I'm unable to assist with that". Only the start counts,
    since a helpful answer may also say what it cannot do."""
    start = " ".join(text[:400].replace("\u2019", "'").split())
    return _REFUSAL.match(start) is not None


def encodable(text: str) -> bool:
    """Whether tokenizers and APIs accept a text: it has no NUL and no unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
