"""What travels between the phases: one frozen record per line of a JSONL file."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A line of a journal: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """A conversation that ends with the user's turn.

    `reference` is whatever the metrics need to score an answer (a gold label, say); no model
    ever sees it.
    """

    id: str
    messages: tuple[Message, ...]
    reference: dict[str, Any] = {}


FinishReason = Literal["stop", "length"]


class Candidate(Record):
    """One sampled answer. `slot` is the index into `sample.slots`; `settings` is that slot.

    `token_ids` are the ids the engine produced, its end token included when it produced one.
    A `finish_reason` of "length" says that the answer was cut off.
    """

    prompt_id: str
    slot: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    settings: dict[str, Any]
    engine: str


BallotOutcome = Literal[
    "first",
    "second",
    "tie",
    "1",
    "2",
    "3",
    "4",
    "5",
    "refusal",
    "unparsed",
    "cut_off",
    "exceeds_context",
    "not_answered",
]


@dataclass(frozen=True, slots=True)
class ContestId:
    """Which two answers are compared: a prompt may have more than two."""

    prompt_id: str
    names: frozenset[str]


class Choice:
    """What an outcome says, and of what. The fields are those of a `Ballot`."""

    __slots__ = ()

    prompt_id: str
    outcome: BallotOutcome
    first: str
    second: str

    @property
    def contest_id(self) -> ContestId:
        return ContestId(self.prompt_id, frozenset((self.first, self.second)))

    @property
    def compares(self) -> bool:
        """Whether the judge has judged at all."""
        return self.score is not None or self.outcome in ("first", "second", "tie")

    @property
    def score(self) -> int | None:
        """From 1 (worst) to 5 (best), or None."""
        return int(self.outcome) if self.outcome.isdigit() else None

    @property
    def preferred(self) -> str | None:
        """The name of the preferred candidate, or None without a preference."""
        return {"first": self.first, "second": self.second}.get(self.outcome)


class Ballot(Choice, Record):
    """One answer of a judge: which of the two texts it was shown it prefers, or the score of one.

    `key` is the digest of what was asked and of whom (`Judge.key`). `first` and `second` name the
    candidates in the order shown: slots when labelling, arms when evaluating (`second` is empty
    where one text is scored). `repeat` is 1 where
    the same was asked once more. `usage` counts the tokens of every attempt, also those that
    failed; it is empty where another run had paid. `category` is a refusal's; `answered_by` and
    `request_id` are the provider's own words.
    """

    key: str
    prompt_id: str
    first: str
    second: str
    repeat: int = 0
    outcome: BallotOutcome
    category: str = ""
    reasoning: str = ""
    judge: str
    answered_by: str = ""
    request_id: str = ""
    usage: dict[str, int] = {}


VerdictOutcome = Literal[
    "preferred",
    "tie",
    "inconsistent",
    "refusal",
    "unparsed",
    "cut_off",
    "exceeds_context",
    "not_answered",
]


class Verdict(Record):
    """What the ballots on one pair of candidates add up to.

    `between` are the two candidates' names. `preferred` and `other` are set only for the outcome
    "preferred".
    """

    prompt_id: str
    between: tuple[str, str]
    outcome: VerdictOutcome
    preferred: str | None = None
    other: str | None = None

    def is_between(self, a: str, b: str) -> bool:
        """Whether it is about these two candidates."""
        return set(self.between) == {a, b}


class PreferencePair(Record):
    """What DPO trains on: a prompt, the answer to prefer and the answer to avoid."""

    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


class Generation(Record):
    """An arm's answer to a held-out prompt; `decoding` indexes `evaluate.decodings`."""

    prompt_id: str
    arm: str
    decoding: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    engine: str


class Score(Record):
    """A metric's value for one generation."""

    prompt_id: str
    arm: str
    decoding: int
    metric: str
    value: float


class Unscored(Record):
    """A generation that a metric has no value for; `reason` is one of `metrics.Reason`."""

    prompt_id: str
    arm: str
    decoding: int
    metric: str
    reason: str
    message: str
