"""The formats of preference pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Any

from dpo_dist.config import DataSource, PreferenceSource
from dpo_dist.data.formats import SCORES, Format, recognised
from dpo_dist.data.prompts import exact_digest
from dpo_dist.data.readers import Row, source_name
from dpo_dist.data.rows import check_text, read_rows
from dpo_dist.data.turns import instructed, is_transcript, messages_of, turns_of, with_options
from dpo_dist.storage.records import Message, PreferencePair

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
class Labelled:
    """An answer that is good or bad, by its own label."""

    prompt: Conversation
    answer: Message
    good: bool


Reading = Ranked | Two | Labelled | str  # a text is the reason why the row has no pair
Found = PreferencePair | str


def pairs_in(source: DataSource) -> Iterator[Found]:
    """The pairs of a source's rows; for a pair that is not used, the reason. Raises `DataError`
    naming file and row."""
    settings = (
        source if isinstance(source, PreferenceSource) else PreferenceSource(path=source.path)
    )
    waiting: dict[str, list[tuple[Row, Labelled]]] = defaultdict(list)
    paired, known, row = False, None, None
    for row in read_rows(source):
        known = recognised(PAIRS, row, source_name(source), "preference pairs", known)
        read = _status(row) or known.read(row)
        if not isinstance(read, Labelled):
            yield from _found(row, read, settings)
            continue
        others = waiting[exact_digest(read.prompt)]
        if not others or others[0][1].good == read.good:
            others.append((row, read))
            continue
        place, other = others.pop(0)
        good, bad = (read, other) if read.good else (other, read)
        paired = True
        two = Two(read.prompt, (good.answer,), (bad.answer,))
        yield from _found(place, two, settings)
    left = sum(map(len, waiting.values()))
    if left and not paired:
        assert row is not None
        raise row.error(
            "no prompt has an answer with `label: true` and one with `label: false`; DPO learns "
            "from pairs. KTO, which learns from single labels, is not part of this project"
        )
    yield from ("unpaired" for _ in range(left))


def _found(row: Row, read: Ranked | Two | str, settings: PreferenceSource) -> Iterator[Found]:
    if isinstance(read, str):
        yield read
        return
    if isinstance(read, Two):
        yield from _enough([(_pair(row, read), _margin(row))], row, settings)
        return
    ranked = sorted(read.answers, key=lambda answer: answer[1], reverse=True)
    if len(ranked) < 2:
        yield "unrated"
        return
    chosen = (
        [(ranked[0], ranked[-1])] if settings.pairs == "best_worst" else combinations(ranked, 2)
    )
    pairs: list[tuple[Found, float | None]] = [
        ("tie", None)
        if better[1] == worse[1]
        else (_pair(row, Two(read.prompt, (better[0],), (worse[0],))), better[1] - worse[1])
        for better, worse in chosen
    ]
    yield from _enough(pairs, row, settings)


def _enough(
    pairs: Iterable[tuple[Found, float | None]], row: Row, settings: PreferenceSource
) -> Iterator[Found]:
    """The pairs with at least `min_margin`."""
    least = settings.min_margin
    for pair, margin in pairs:
        if least is None or isinstance(pair, str):
            yield pair
        elif margin is None:
            columns = ", ".join(f"`{a}` and `{b}`" for a, b in SCORES)
            raise row.error(f"`min_margin` needs the column `margin`, or two scores: {columns}")
        else:
            yield pair if margin >= least else "below_min_margin"


def _status(row: Row) -> str | None:
    """The reason in the column `status` of distilabel and Argilla."""
    status = row.values.get("status")
    if status in (None, "unchanged", "swapped", "submitted", "completed"):
        return None
    if status in ("tie", "discarded", "pending", "draft"):
        return str(status)
    raise row.error(
        f"`status` is {status!r}; known are tie, unchanged, swapped and Argilla's. "
        "If it does not matter: `ignore_columns: [status]`"
    )


def _margin(row: Row) -> float | None:
    values = row.values
    if "margin" in values:
        return _number(row, "margin", values["margin"])
    for better, worse in (*SCORES, *_SHP_SCORES.get(str(values.get("labels")), ())):
        if better in values and worse in values:
            scores = (_number(row, key, values[key]) for key in (better, worse))
            return next(scores) - next(scores)
    return None


_SHP_SCORES = {"1": (("score_A", "score_B"),), "0": (("score_B", "score_A"),)}


def _number(row: Row, key: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise row.error(f"`{key}` is {value!r:.40}, not a number") from None


def _pair(row: Row, two: Two) -> Found:
    before, answers = [], []
    for key, turns in (("chosen", two.chosen), ("rejected", two.rejected)):
        if not turns:
            raise row.error(f"`{key}` is missing or empty")
        if turns[-1].role != "assistant":
            if two.prompt is None:
                return "no_answer"
            raise row.error(f"`{key}` must end with an assistant turn")
        before.append(_context(row, key, two.prompt, turns[:-1]))
        answers.append(turns[-1])
    if before[0] != before[1]:
        # Usual in public transcripts, such as HH-RLHF's, which nobody can edit.
        if two.prompt is None:
            return "different_prompts"
        raise row.error(
            "`chosen` and `rejected` answer different prompts, or are completions of several turns "
            "that differ before the last one. A pair has one answer each: end `prompt` before the "
            "turn that differs"
        )
    context = with_options(row, before[0])
    if context[-1].role not in ("user", "tool"):
        raise row.error(f"the prompt must end with a user turn, not {context[-1].role}")
    if not context[-1].content.strip():
        raise row.error("`prompt` ends with an empty turn")
    identifier = str(row.values.get("prompt_id") or exact_digest(context)[:16])
    check_text(row, "prompt_id", identifier)
    chosen, rejected = answers
    return PreferencePair(
        prompt_id=identifier,
        prompt=context,
        chosen=chosen.content,
        rejected=rejected.content,
        chosen_turn=None if chosen.is_plain else chosen,
        rejected_turn=None if rejected.is_plain else rejected,
    )


def _context(row: Row, key: str, prompt: Conversation | None, before: Conversation) -> Conversation:
    """The turns that an answer follows. `before` are the turns before it in its own column: none,
    a continuation of the prompt, or a conversation that holds the prompt."""
    if prompt is None:
        if not before:
            raise row.error(f"there is no `prompt`, and `{key}` has no turn before its answer")
        return before
    if not before or before[0].role == "assistant":
        return prompt + before
    start = before[1:] if before[0].role == "system" != prompt[0].role else before
    holds = before[-len(prompt) :] == prompt or start[: len(prompt)] == prompt
    if holds or before[-1].content == prompt[-1].content:
        return before
    raise row.error(f"`{key}` does not hold the row's prompt")


# How rows are read.


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


def _kto(row: Row) -> Labelled:
    label = {"true": True, "false": False, "1": True, "0": False}.get(
        str(row.values["label"]).lower()
    )
    if label is None:
        raise row.error(f"`label` is {row.values['label']!r}, not true or false")
    prompt = with_options(row, messages_of(row, "prompt", "user"))
    answer = _answer(row, "completion")
    if len(answer) != 1 or answer[0].role != "assistant":
        raise row.error("`completion` must be a single assistant turn")
    return Labelled(prompt, answer[0], label)


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
                -_number(row, "answers.rank", item.get("rank")),
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
        tuple((_text_answer(row, key, t), _number(row, f"{key}: rating", r)) for t, r in known),
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
