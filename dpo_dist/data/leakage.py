"""Training prompts that a held-out prompt gives away, whole or in long passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dpo_dist.data.prompts import content_digest
from dpo_dist.storage.records import Message

# After the decontamination of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124).
WORDS = 8
OVERLAP = 0.5
# An 8-gram in more than this share of the training prompts, and in more than one held-out prompt,
# belongs to a template that all of them share.
BOILERPLATE = 0.1

Conversation = tuple[Message, ...]
Gram = tuple[str, ...]  # WORDS words


def overlaps(training: Sequence[Conversation], held_out: Sequence[Conversation]) -> list[bool]:
    """Whether each training prompt overlaps with the held-out prompts.

    It does when it is one of them, or when at least half of its 8-grams (of the users' words,
    case aside) occur in any of them. 8-grams of a template count for nothing, on either side of
    the fraction. A prompt of fewer than 8 words has none: only equality counts.
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
        telling = size - (len(grams) - shared)
        copied = shared > 0 and shared >= OVERLAP * telling
        # Only a prompt whose 8-grams are all held out can be a held-out one.
        same = len(grams) == size and content_digest(messages) in exact
        result.append(copied or same)
    return result


def _words(messages: Conversation) -> list[str]:
    users = " ".join(message.content for message in messages if message.role == "user")
    return users.casefold().split()


def _grams(words: list[str]) -> zip[Gram]:
    return zip(*(words[start:] for start in range(WORDS)), strict=False)
