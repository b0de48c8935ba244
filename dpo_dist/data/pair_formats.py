"""The formats of preference pairs: how a row becomes answers that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from dpo_dist.data.formats import Format
from dpo_dist.data.readers import Row
from dpo_dist.data.rows import check_text
from dpo_dist.data.turns import instructed, is_transcript, messages_of, turns_of, with_options
from dpo_dist.storage.records import Message

Conversation = tuple[Message, ...]
WHOLE_PROMPT = "prompt_messages"  # the prompt as JSON text, in the pairs of a finished run


@dataclass(frozen=True)
class Ranked:
    """Several answers to a row's prompt with their scores; the highest is the best."""

    prompt: Conversation
    answers: tuple[tuple[Message, float], ...]


@dataclass(frozen=True)
class Two:
    """A chosen and a rejected value, each an answer or a whole conversation. `prompt`: None if it
    is the beginning of both."""

    prompt: Conversation | None
    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer that is good or bad, by its own label."""

    prompt: Conversation
    answer: Message
    good: bool


Reading = Ranked | Two | LabelledAnswer | str  # a text is the reason why the row has no pair


def number_of(row: Row, key: str, value: object) -> float:
    """A value as a number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise row.error(f"`{key}` is {value!r:.40}, not a number") from None


def _two(
    prompt: str, chosen: str = "chosen", rejected: str = "rejected"
) -> Callable[[Row], Reading]:
    """Reads rows with a prompt and two answers."""

    def read(row: Row) -> Two:
        # A finished run's pairs have a second, whole prompt if turns are more than texts.
        key = WHOLE_PROMPT if prompt == "prompt" and row.values.get(WHOLE_PROMPT) else prompt
        alpaca = prompt == "instruction"
        messages = instructed(row) if alpaca else messages_of(row, key, "user")
        return Two(messages, _answer(row, chosen), _answer(row, rejected))

    return read


def _answer(row: Row, key: str) -> Conversation:
    return turns_of(row, key, row.values.get(key), "assistant")


def _implicit(row: Row) -> Two:
    return Two(None, _answer(row, "chosen"), _answer(row, "rejected"))


def _implicit_text(row: Row) -> Two | str:
    """The prompt is the common beginning of both texts, up to a white space."""
    chosen, rejected = (_answer(row, key)[0].content for key in ("chosen", "rejected"))
    common = "".join(
        a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))
    )
    if chosen == rejected:
        return "identical"
    cut = max((n for n, c in enumerate(common, start=1) if c.isspace()), default=0)
    if not common[:cut].strip():
        raise row.error("there is no `prompt`, and `chosen` and `rejected` do not begin alike")
    prompt = (Message(role="user", content=common[:cut].strip()),)
    answers = (Message(role="assistant", content=text[cut:]) for text in (chosen, rejected))
    return Two(prompt, (next(answers),), (next(answers),))


def _shp(row: Row) -> Two:
    label = str(row.values["labels"])
    if label not in ("0", "1"):
        raise row.error(f"`labels` is {label}; 1 means that human_ref_A is better, 0 human_ref_B")
    a, b = _answer(row, "human_ref_A"), _answer(row, "human_ref_B")
    return Two(messages_of(row, "history", "user"), *((a, b) if label == "1" else (b, a)))


def _kto(row: Row) -> LabelledAnswer:
    label = {"true": True, "false": False, "1": True, "0": False}.get(
        str(row.values["label"]).lower()
    )
    if label is None:
        raise row.error(f"`label` is {row.values['label']!r}, not true or false")
    prompt = with_options(row, messages_of(row, "prompt", "user"))
    answer = _answer(row, "completion")
    if len(answer) != 1 or answer[0].role != "assistant":
        raise row.error("`completion` must be a single assistant turn")
    return LabelledAnswer(prompt, answer[0], label)


def _items(row: Row, key: str) -> list[Mapping[str, Any]]:
    items = row.values[key]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise row.error(f"`{key}` must be a list of objects")
    return items


def _text_answer(row: Row, key: str, text: object) -> Message:
    if not isinstance(text, str):
        raise row.error(f"`{key}` has an answer that is not a text")
    check_text(row, key, text)
    return Message(role="assistant", content=text)


def _nectar(row: Row) -> Ranked:
    return Ranked(
        messages_of(row, "prompt", "user"),
        tuple(
            (
                _text_answer(row, "answers", item.get("answer")),
                -number_of(row, "answers.rank", item.get("rank")),
            )
            for item in _items(row, "answers")
        ),
    )


def _ultrafeedback(row: Row) -> Ranked:
    rated = [
        (item.get("response"), item.get("overall_score")) for item in _items(row, "completions")
    ]
    return _rated(row, "completions", rated)


def _generations(row: Row) -> Ranked:
    texts, ratings = row.values["generations"], row.values["ratings"]
    if not isinstance(texts, list) or not isinstance(ratings, list) or len(texts) != len(ratings):
        raise row.error("`generations` and `ratings` must be lists of the same length")
    return _rated(row, "generations", list(zip(texts, ratings, strict=True)))


def _rated(row: Row, key: str, rated: list[tuple[object, object]]) -> Ranked:
    """The answers of a row with a rating each; those without one cannot be compared."""
    known = [(text, rating) for text, rating in rated if rating not in (None, "N/A")]
    return Ranked(
        instructed(row),
        tuple((_text_answer(row, key, t), number_of(row, f"{key}: rating", r)) for t, r in known),
    )


def _all_texts(check: Any, *keys: str) -> Any:
    return lambda values: all(check(values[key]) for key in keys)


def _is_turns(value: object) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, str) and value[:1] == "[")


_MESSAGES = frozenset(
    {"messages", WHOLE_PROMPT}
)  # `messages` in UltraFeedback-binarized: the chosen conversation again
_INPUT = frozenset({"input"})
_GENERATIONS = frozenset({"generations", "ratings", "input", "instruction", "conversation"})
_CHOSEN = ("chosen", "rejected")
# The first format that fits is used.
PAIRS: tuple[Format[Reading], ...] = (
    Format("Nectar", ("prompt", "answers"), _nectar),
    Format("KTO", ("prompt", "completion", "label"), _kto),
    Format(
        "TRL, conversational, explicit prompt",
        ("prompt", *_CHOSEN),
        _two("prompt"),
        _MESSAGES | _GENERATIONS,
        where=_all_texts(_is_turns, "chosen"),
    ),
    Format("TRL, standard, explicit prompt", ("prompt", *_CHOSEN), _two("prompt"), _MESSAGES),
    Format("ShareGPT", ("conversations", *_CHOSEN), _two("conversations")),
    Format("alpaca", ("instruction", *_CHOSEN), _two("instruction"), _INPUT),
    Format("orca", ("question", *_CHOSEN), _two("question")),
    Format("distilabel's orca", ("input", *_CHOSEN), _two("input"), _GENERATIONS),
    Format(
        "Argilla",
        ("instruction", "chosen_response", "rejected_response"),
        _two("instruction", "chosen_response", "rejected_response"),
    ),
    Format(
        "distilabel's UltraFeedback",
        ("instruction", "generations", "ratings"),
        _generations,
        _INPUT,
    ),
    Format("UltraFeedback", ("instruction", "completions"), _ultrafeedback),
    Format("SHP", ("history", "human_ref_A", "human_ref_B", "labels"), _shp),
    Format("HH-RLHF transcripts", _CHOSEN, _implicit, where=_all_texts(is_transcript, *_CHOSEN)),
    Format(
        "TRL, conversational, implicit prompt",
        _CHOSEN,
        _implicit,
        _MESSAGES,
        where=_all_texts(_is_turns, *_CHOSEN),
    ),
    Format("TRL, standard, implicit prompt", _CHOSEN, _implicit_text),
)
