"""The interface of a judge, and the comparison that it decides."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import JsonValue

from dpo_dist.storage.records import Ballot, BallotOutcome, ComparisonId, Prompt

BALLOTS = "ballots.jsonl"  # the journal in a phase's folder
GROUP = 500  # ballots that are written to disk together

Preference = Literal["first", "second", "tie"]


def higher(first: float, second: float, margin: float = 0.0) -> Preference:
    """Which of two scores is higher; a tie if they differ by at most `margin`."""
    if abs(first - second) <= margin:
        return "tie"
    return "first" if first > second else "second"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, in the order shown to the judge.

    `first` and `second` name the answers (slots, arms); no judge sees these names. `number`
    distinguishes the comparisons of one prompt in `drawn`. `repeat` counts earlier, identical
    questions.
    """

    prompt: Prompt
    first: str
    second: str
    first_text: str
    second_text: str
    number: int = 0
    repeat: int = 0

    @property
    def id(self) -> ComparisonId:
        """The same in both orders."""
        return ComparisonId(self.prompt.id, frozenset((self.first, self.second)))

    def swap(self) -> Comparison:
        """The same answers in the other order."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            first_text=self.second_text,
            second_text=self.first_text,
        )

    def drawn(self, seed: int, *what: str) -> bytes:
        """32 random bytes that depend only on the seed, the purpose `what`, the prompt's id and
        `number`; other comparisons and their order do not change them."""
        parts = [str(seed), *what, self.prompt.id, str(self.number)]
        return hashlib.sha256("\0".join(parts).encode()).digest()


def single_answer(prompt: Prompt, name: str, text: str) -> Comparison:
    """One answer to score, as a comparison without a second one."""
    return Comparison(prompt, name, "", text, "")


def rules_digest(rules: Sequence[JsonValue]) -> str:
    """First 12 hex digits of the SHA-256 of the judge's rules."""
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:12]


class Judge(ABC):
    """Compares answers. `identity` names the judge and the digest of its rules; `uses_reference`
    says whether its ballots depend on the prompt's reference."""

    identity: str
    uses_reference = False

    @abstractmethod
    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[Sequence[Ballot]]:
        """Yield one ballot per comparison, in groups that were decided together, in any order. A
        comparison is taken from the iterable just before it is asked. Raises `JudgeFailed` if the
        judge cannot continue; ballots that were yielded before stay valid."""

    def check(self) -> None:
        """Raise `ConfigError` if the judge cannot work, for example with refused credentials. This
        is called before anything is paid for."""
        return

    def why_not_asked(self, comparison: Comparison) -> BallotOutcome | None:
        """The outcome of a comparison that is known without asking, or None."""
        return None

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        """The usage that asking is estimated to take; empty if it is free."""
        return {}

    def key(self, comparison: Comparison) -> str:
        """The SHA-256, in hexadecimal, of everything that a ballot depends on; equal keys are asked
        once."""
        turns = [(message.role, message.content) for message in comparison.prompt.messages]
        texts = (comparison.first_text, comparison.second_text)
        reference = comparison.prompt.reference if self.uses_reference else None
        parts = [self.identity, turns, texts, comparison.repeat, reference]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def ballot(self, comparison: Comparison, outcome: BallotOutcome, **more: Any) -> Ballot:
        """This judge's ballot on a comparison."""
        return Ballot(
            key=self.key(comparison),
            prompt_id=comparison.prompt.id,
            first=comparison.first,
            second=comparison.second,
            repeat=comparison.repeat,
            outcome=outcome,
            judge=self.identity,
            **more,
        )
