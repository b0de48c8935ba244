"""Metrics of an answer's text and of how it ended."""

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
    """1 where the pattern is found, or with `full` is the whole answer."""
    compiled = re.compile(pattern)
    find = compiled.fullmatch if match == "full" else compiled.search
    return lambda prompt, answer: float(find(answer.text) is not None)


def exact_match(field: str) -> Callable[[Prompt, Answer], float]:
    """1 for one of the reference's texts: NFKC, without case, every white space one blank."""

    def score(prompt: Prompt, answer: Answer) -> float:
        accepted = {_normalised(text) for text in _texts(prompt, field)}
        return float(_normalised(answer.text) in accepted)

    return score


def rouge_l(field: str) -> Callable[[Prompt, Answer], float]:
    """F1 of the longest common subsequence of words (Lin 2004, "ROUGE", section 3, β = 1).

    Words are runs of letters and digits, without case and without stemming. Of several
    references the best counts.
    """

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
    """The answer's tokens or characters."""

    def tokens(prompt: Prompt, answer: Answer) -> float:
        assert answer.tokens is not None
        return float(answer.tokens)

    return tokens if unit == "tokens" else lambda prompt, answer: float(len(answer.text))


def stop_rate(prompt: Prompt, answer: Answer) -> float:
    """1 for an answer that ended by itself."""
    assert answer.finish_reason is not None
    return float(answer.finish_reason == "stop")


def distinct_n(n: int) -> Callable[[Prompt, Answer], float]:
    """Distinct n-grams among an answer's (Li et al. 2016, arXiv 1510.03055, who take them over all
    answers together; here each answer has its own, so that prompts can be paired)."""

    def score(prompt: Prompt, answer: Answer) -> float:
        found = words(answer.text)
        total = len(found) - n + 1
        if total < 1:
            raise NotScored("too_short", f"the answer has fewer than {counted(n, 'word')}")
        return len({tuple(found[i : i + n]) for i in range(total)}) / total

    return score


def repetition(n: int) -> Callable[[Prompt, Answer], float]:
    """1 less the distinct n-grams: seq-rep-n (Welleck et al. 2020, arXiv 1908.04319)."""
    distinct = distinct_n(n)
    return lambda prompt, answer: 1 - distinct(prompt, answer)


def refusal_rate(prompt: Prompt, answer: Answer) -> float:
    """1 for an answer that begins like a refusal."""
    return float(looks_like_refusal(answer.text))


def words(text: str) -> list[str]:
    """Runs of letters and digits, without case."""
    return _WORD.findall(text.casefold())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. Bit-parallel (Hyyrö 2004): bit i of `row` is 0 where the subsequence of a[:i+1]
    is longer than that of a[:i]."""
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
    """The reference as texts: one, several, or a number."""
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
