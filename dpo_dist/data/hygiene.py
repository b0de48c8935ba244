"""What is wrong with a pair of answers before anybody is asked about it."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher

# Tokens by which chat templates tell the turns apart (ChatML, Llama 2 and 3, Gemma, Mistral, ...).
# In an answer's text they mean that the model ran on past its own turn; as `chosen` they would be
# tokenized as the control tokens that they imitate.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<[bp]os>|<eos>"
)

# Pairs this much alike pull the likelihood of both answers down (Razin et al. 2024, arXiv
# 2410.08847); the number is ours.
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
# After an apology or a self-introduction, being unable to do anything at all is a refusal, apart
# from what people are sorry for in letters and from "I can't ..., but I can"; without one, only
# being unable to help is.
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


def why_not_judged(a: str, b: str) -> str | None:
    """The reason why two answers are not worth a judgement, or None.

    `empty`; `identical`; `near_identical`: the same words, apart from case, white space and a few
    edits (`similar`); `control_token`: one holds a token of a chat template; `unencodable`: one
    holds what a file of preferences may not.
    """
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
    """Whether at least `NEAR_IDENTICAL` of the words of both texts match, in order.

    In answers of fewer than 20 words no word may differ: it may be all that the pair is about.
    """
    # The order decides between equally long matches; sorted, the result is symmetric.
    first, second = sorted((_words(a), _words(b)))
    needed = NEAR_IDENTICAL * (len(first) + len(second)) / 2
    # The number of words in common, whatever their order, cannot be exceeded by the matches.
    if min(len(first), len(second)) < needed or (Counter(first) & Counter(second)).total() < needed:
        return False
    return SequenceMatcher(None, first, second, autojunk=False).ratio() >= NEAR_IDENTICAL


def looks_like_refusal(text: str) -> bool:
    """Whether an answer begins like one that declines to help, in English.

    "I'm sorry, but I can't ...", "As an AI language model, I cannot ...", "I'm unable to assist
    with that". Only the beginning counts: an answer may well go on to say what it cannot do.
    """
    beginning = " ".join(text[:400].replace("\u2019", "'").split())
    return _REFUSAL.match(beginning) is not None


def encodable(text: str) -> bool:
    """Whether tokenizers and APIs can carry a text: no NUL, no unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _words(text: str) -> list[str]:
    return text.casefold().split()
