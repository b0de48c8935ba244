"""Metrics of an answer's text and of its end."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

from dpo_dist.data.hygiene import looks_like_refusal
from dpo_dist.metrics.metric import Answer, NotScored, gold_of
from dpo_dist.storage.records import Prompt
from dpo_dist.system.console import counted

_WORD = re.compile(r"[^\W_]+")


def regex(pattern: str, match: Literal["search", "full"]) -> Callable[[Prompt, Answer], float]:
    """1 if the pattern occurs in the answer; with `full`, if it matches the whole answer."""
    compiled = re.compile(pattern)
    find = compiled.fullmatch if match == "full" else compiled.search
    return lambda prompt, answer: float(find(answer.text) is not None)


def exact_match(field: str) -> Callable[[Prompt, Answer], float]:
    """1 if the answer equals one of the reference's texts, after NFKC normalisation and ignoring
    case and differences in white space."""

    def score(prompt: Prompt, answer: Answer) -> float:
        accepted = {_normalised(text) for text in _texts(prompt, field)}
        return float(_normalised(answer.text) in accepted)

    return score


def rouge_l(field: str) -> Callable[[Prompt, Answer], float]:
    """F1 of the longest common subsequence of words (Lin 2004, "ROUGE", section 3, β = 1). Words
    are runs of letters and digits, ignoring case, without stemming. With several references, the
    best score counts."""

    def score(prompt: Prompt, answer: Answer) -> float:
        references = [found for text in _texts(prompt, field) if (found := words(text))]
        if not references:
            raise NotScored("no_reference", f"the prompt's reference.{field} has no words")
        given = words(answer.text)
        return max(
            2 * longest_common_subsequence(given, reference) / (len(given) + len(reference))
            for reference in references
        )

    return score


def length(unit: Literal["tokens", "characters"]) -> Callable[[Prompt, Answer], float]:
    """The number of the answer's tokens or characters."""

    def tokens(prompt: Prompt, answer: Answer) -> float:
        assert answer.tokens is not None
        return float(answer.tokens)

    return tokens if unit == "tokens" else lambda prompt, answer: float(len(answer.text))


def stop_rate(prompt: Prompt, answer: Answer) -> float:
    """1 if the answer was not cut off."""
    assert answer.finish_reason is not None
    return float(answer.finish_reason == "stop")


def distinct_n(n: int) -> Callable[[Prompt, Answer], float]:
    """The share of distinct n-grams of an answer (Li et al. 2016, arXiv 1510.03055). The paper has
    one share for all answers; here each answer has its own, so that prompts can be paired."""

    def score(prompt: Prompt, answer: Answer) -> float:
        all_words = words(answer.text)
        total = len(all_words) - n + 1
        if total < 1:
            raise NotScored("too_short", f"the answer has fewer than {counted(n, 'word')}")
        return len({tuple(all_words[i : i + n]) for i in range(total)}) / total

    return score


def repetition(n: int) -> Callable[[Prompt, Answer], float]:
    """1 - distinct_n: seq-rep-n (Welleck et al. 2020, arXiv 1908.04319)."""
    distinct = distinct_n(n)
    return lambda prompt, answer: 1 - distinct(prompt, answer)


def refusal_rate(prompt: Prompt, answer: Answer) -> float:
    """1 if the answer begins like a refusal."""
    return float(looks_like_refusal(answer.text))


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case."""
    return _WORD.findall(text.casefold())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, bit-parallel (Hyyrö 2004): bit i of `row` is 0
    if the subsequence of a[: i + 1] is longer than that of a[:i]."""
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def _texts(prompt: Prompt, field: str) -> list[str]:
    """The reference's texts, from a text, a number or a list of them."""
    gold = gold_of(prompt, field)
    texts = gold if isinstance(gold, list) else [gold]
    if not texts:
        raise NotScored("no_reference", f"the prompt's reference.{field} is empty")
    for text in texts:
        if not isinstance(text, str | int | float):
            raise TypeError(f"reference.{field} holds a {type(text).__name__}, not a text")
    return [str(text) for text in texts]


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
