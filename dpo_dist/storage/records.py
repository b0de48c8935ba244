"""The records that phases exchange: one frozen record per line of a JSONL file."""

from dataclasses import dataclass
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)


class Record(BaseModel):
    """A line of a journal. It is immutable and allows no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation.

    The other fields are those that chat templates read; objects are JSON texts, so that a message
    can be hashed. `tools` and `chat_template_kwargs` are options of the template for the whole
    conversation: the prompt's last turn carries them. Absent fields are not written.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None
    tools: str | None = None
    chat_template_kwargs: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def template_options(self) -> dict[str, str | None]:
        """The options of the template for the conversation that ends with this turn."""
        return {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}

    @property
    def is_plain(self) -> bool:
        """Whether the turn has only a role and a content."""
        return len(self.model_dump()) == 2


class Prompt(Record):
    """A conversation that ends with the user's turn. `reference` is what metrics need to score an
    answer, such as a gold label; no model sees it."""

    id: str
    messages: tuple[Message, ...]
    reference: dict[str, JsonValue] = {}


FinishReason = Literal["stop", "length"]


class Candidate(Record):
    """A sampled answer. `slot` is the index into `sample.slots`; `settings` is that slot. `text` is
    the answer without the `thought` of a thinking model. `prompt_ids` are the ids that the engine
    was given, `token_ids` those that it generated, including an end token. `finish_reason`
    "length" means that the answer was cut off. `log_prob` is the engine's log-prob of `token_ids`
    (nats), that of the model itself, whatever the slot's temperature and filters; None: unknown."""

    prompt_id: str
    slot: int
    text: str
    thought: str = ""
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    log_prob: float | None = None
    settings: dict[str, JsonValue]
    engine: str


# The reasons why a ballot has no preference, tie or score.
NoAnswer = Literal["refusal", "unparsed", "cut_off", "exceeds_context", "not_answered"]
BallotOutcome = Literal["first", "second", "tie", "1", "2", "3", "4", "5", NoAnswer]


@dataclass(frozen=True, slots=True)
class ComparisonId:
    """Identifies a comparison: its prompt and the names of the two candidates."""

    prompt_id: str
    names: frozenset[str]


class BallotFields:
    """The fields of a `Ballot` that say what was judged and how, and what follows from them."""

    __slots__ = ()

    prompt_id: str
    outcome: BallotOutcome
    first: str
    second: str

    @property
    def comparison_id(self) -> ComparisonId:
        return ComparisonId(self.prompt_id, frozenset((self.first, self.second)))

    @property
    def compares(self) -> bool:
        """Whether the judge gave a preference, a tie or a score."""
        return self.score is not None or self.outcome in ("first", "second", "tie")

    @property
    def score(self) -> int | None:
        """The score from 1 (worst) to 5 (best), or None."""
        return int(self.outcome) if self.outcome.isdigit() else None

    @property
    def preferred(self) -> str | None:
        """The name of the preferred candidate, or None."""
        return {"first": self.first, "second": self.second}.get(self.outcome)


class Ballot(BallotFields, Record):
    """One answer of a judge: its preference between two texts, or its score of one text.

    `key` is the digest of the request and the judge (`Judge.key`). `first` and `second` name the
    candidates in the order shown: slots in the judge phase, arms in the evaluation; `second` is
    empty for a score. `repeat` is 1 for a repeated comparison. `usage` counts the tokens of all
    attempts, including failed ones; it is empty if another run paid. `category` is the category of
    a refusal; `answered_by` and `request_id` come from the provider.
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


VerdictOutcome = Literal["preferred", "tie", "inconsistent", NoAnswer]


class Verdict(Record):
    """The result of all ballots on one pair of candidates. `between` are the candidates' names.
    `preferred` and `other` are set only for the outcome "preferred"."""

    prompt_id: str
    between: tuple[str, str]
    outcome: VerdictOutcome
    preferred: str | None = None
    other: str | None = None

    def is_between(self, a: str, b: str) -> bool:
        """Whether the verdict is about these two candidates."""
        return set(self.between) == {a, b}


class Sampled(Record):
    """The token ids of a pair as they were sampled (int32, little-endian: a sixth of the memory of
    Python's integers), and the engine's log-prob of each answer (nats), NaN if it is unknown.
    `prompt` is empty if every slot added to the prompt, which training does not."""

    prompt: bytes
    chosen: bytes
    rejected: bytes
    chosen_log_prob: float
    rejected_log_prob: float


class PreferencePair(Record):
    """A training example of DPO: a prompt with its chosen and its rejected answer. `sampled` is
    None for answers from elsewhere. `chosen_turn` and `rejected_turn` are answers that are more
    than a text, such as one with tool calls; the text is then their content."""

    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    sampled: Sampled | None = None
    chosen_turn: Message | None = None
    rejected_turn: Message | None = None

    @property
    def answers(self) -> tuple[str | Message, str | Message]:
        """The chosen and the rejected answer, as texts or as turns."""
        return self.chosen_turn or self.chosen, self.rejected_turn or self.rejected


class Generation(Record):
    """An arm's answer to a held-out prompt; `decoding` indexes `evaluate.decodings`. `text` is the
    answer without the `thought` of a thinking model."""

    prompt_id: str
    arm: str
    decoding: int
    text: str
    thought: str = ""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    engine: str


class _Measured(Record):
    prompt_id: str
    arm: str
    decoding: int
    metric: str


class Score(_Measured):
    """A metric's value for a generation."""

    value: float


class Unscored(_Measured):
    """A generation without a value of a metric; `reason` is one of `metrics.Reason`."""

    reason: str
    message: str
