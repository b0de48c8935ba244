"""Finds training prompts that contain a held-out prompt, or large parts of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dpo_dist.data.prompts import content_digest
from dpo_dist.storage.records import Message

# As in the decontamination of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124).
WORDS = 8
OVERLAP = 0.5
# An 8-gram in more than this share of the training prompts, and in more than one held-out prompt,
# is part of a template that the prompts share.
BOILERPLATE = 0.1

Conversation = tuple[Message, ...]
Gram = tuple[str, ...]  # WORDS words


def overlaps(training: Sequence[Conversation], held_out: Sequence[Conversation]) -> list[bool]:
    """Whether each training prompt overlaps with the held-out prompts.

    It does if it equals one of them, or if at least half of its 8-grams occur in any of them.
    8-grams consist of words of the user's turns, without case. 8-grams of a template are ignored in
    both numerator and denominator. A prompt of fewer than 8 words only overlaps if it is equal.
    """
    exact = {content_digest(messages) for messages in held_out}
    holders = Counter(gram for messages in held_out for gram in set(_grams(_words(messages))))
    sizes: list[int] = []
    found: list[list[Gram]] = []
    for messages in training:
        words = _words(messages)
        sizes.append(max(0, len(words) - WORDS + 1))
        found.append(list(filter(holders.__contains__, _grams(words))))
    trained = Counter(gram for grams in found for gram in set(grams))
    common = max(1.0, BOILERPLATE * len(training))
    template = {gram for gram, n in trained.items() if n > common and holders[gram] > 1}
    result = []
    for messages, size, grams in zip(training, sizes, found, strict=True):
        shared = sum(gram not in template for gram in grams)
        counted = size - (len(grams) - shared)
        copied = shared > 0 and shared >= OVERLAP * counted
        # Equality requires that all 8-grams are held out; checking this first saves digests.
        equal = len(grams) == size and content_digest(messages) in exact
        result.append(copied or equal)
    return result


def _words(messages: Conversation) -> list[str]:
    users = " ".join(message.content for message in messages if message.role == "user")
    return users.casefold().split()


def _grams(words: list[str]) -> zip[Gram]:
    return zip(*(words[start:] for start in range(WORDS)), strict=False)
