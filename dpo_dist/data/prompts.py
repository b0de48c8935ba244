"""Reads and checks prompts and SFT rows."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dpo_dist.config import DataSource
from dpo_dist.data.formats import Format, recognised
from dpo_dist.data.readers import Row, source_name
from dpo_dist.data.rows import check_text, read_rows
from dpo_dist.data.turns import instructed, messages_of, with_options
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, Prompt
from dpo_dist.system.console import counted


@dataclass(frozen=True)
class Demonstration:
    """A row of the sft phase, or a part of it: a conversation and the assistant's next turn."""

    id: str
    prompt: tuple[Message, ...]
    completion: Message


def read_prompts(source: DataSource) -> list[Prompt]:
    """Read prompts in file order; docs/data.md lists the formats.

    A missing id is derived from the content. Raises `DataError` naming file and line for a missing
    prompt, one that does not end with a user turn, a duplicate id, an unknown column, and text that
    cannot be encoded.
    """
    return list(iterate_prompts(source))


def iterate_prompts(source: DataSource) -> Iterator[Prompt]:
    """Like `read_prompts`, but reads the rows one by one."""
    places: dict[str, str] = {}
    known = None
    for row in read_rows(source):
        known = recognised(PROMPTS, row, source_name(source), "prompts", known)
        prompt = _prompt(row, known.read(row), known.columns[0])
        if prompt.id in places:
            first = places[prompt.id]
            if "id" not in row.values and "prompt_id" not in row.values:
                raise row.error(
                    f"the prompt is the same as that of {first}; remove one, or give them an `id`"
                )
            raise row.error(f"the id {prompt.id!r} is a duplicate; first used at {first}")
        places[prompt.id] = row.place
        yield prompt


def prompt_of(row: Row, key: str, identifier: str | None) -> Prompt:
    """The prompt under `key`, with the row's `reference`. Without an identifier, it is derived from
    the content. Raises `DataError` naming file and line."""
    return _prompt(row, messages_of(row, key, "user"), key, identifier)


def _prompt(
    row: Row, messages: tuple[Message, ...], key: str, identifier: str | None = None
) -> Prompt:
    if messages[-1].role not in ("user", "tool"):
        raise row.error(f"`{key}` must end with a user turn, not {messages[-1].role}")
    messages = with_options(row, messages)
    reference = row.values.get("reference", {})
    if isinstance(reference, str):
        reference = {"text": reference}
    if not isinstance(reference, dict):
        raise row.error("`reference` must be a text or an object")
    check_text(row, "reference", json.dumps(reference, ensure_ascii=False, default=str))
    if identifier is None:
        given = row.values.get("id", row.values.get("prompt_id"))
        identifier = exact_digest(messages)[:16] if given is None else str(given)
        check_text(row, "id", identifier)
    return Prompt(id=identifier, messages=messages, reference=reference)


def read_demonstrations(source: DataSource) -> list[Demonstration]:
    """Read SFT rows; docs/data.md lists the formats. A conversation becomes one demonstration for
    each of its assistant turns."""
    demonstrations: list[Demonstration] = []
    known = None
    for row in read_rows(source):
        known = recognised(DEMONSTRATIONS, row, source_name(source), "demonstrations", known)
        prompt, completion = known.read(row)
        if not prompt or prompt[0].role == "assistant":
            raise row.error("the conversation must begin with a system or user turn")
        prompt = with_options(row, prompt)
        name = str(row.values.get("id") or row.place)
        turns = (*prompt, *completion)
        answers = [n for n in range(len(prompt), len(turns)) if turns[n].role == "assistant"]
        for number in answers:
            options = prompt[-1].template_options
            before = turns[: number - 1], turns[number - 1].model_copy(update=options)
            part = name if len(answers) == 1 else f"{name}, turn {number + 1}"
            demonstrations.append(Demonstration(part, (*before[0], before[1]), turns[number]))
    return demonstrations


def _completion(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(the conversation, its continuation) of a row with a prompt and a completion."""
    completion = messages_of(row, "completion", "assistant")
    if any(message.role == "user" for message in completion[:1]) or completion[-1].role != (
        "assistant"
    ):
        raise row.error("`completion` must begin and end with assistant turns")
    return messages_of(row, "prompt", "user"), completion


def _conversation(key: str) -> Callable[[Row], tuple[tuple[Message, ...], tuple[Message, ...]]]:
    def read(row: Row) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        messages = messages_of(row, key, "user")
        if messages[-1].role != "assistant":
            raise row.error(f"`{key}` must end with an assistant turn")
        first = next(n for n, message in enumerate(messages) if message.role == "assistant")
        return messages[:first], messages[first:]

    return read


def _answered(key: str, prompt: str) -> Callable[[Row], tuple[tuple[Message, ...], ...]]:
    def read(row: Row) -> tuple[tuple[Message, ...], ...]:
        alpaca = prompt == "instruction"
        messages = instructed(row) if alpaca else messages_of(row, prompt, "user")
        return messages, messages_of(row, key, "assistant")

    return read


def _asked(key: str) -> Callable[[Row], tuple[Message, ...]]:
    """Reads a prompt. The answer that a conversation ends with is no part of it."""

    def read(row: Row) -> tuple[Message, ...]:
        messages = messages_of(row, key, "user")
        answered = key != "prompt" and len(messages) > 1 and messages[-1].role == "assistant"
        return messages[:-1] if answered else messages

    return read


# Columns that prompts do not need: answers, and UltraChat's conversation that starts with `prompt`.
_UNASKED = frozenset({"reference", "messages", "chosen", "rejected", "completion", "label"})
PROMPTS: tuple[Format[tuple[Message, ...]], ...] = (
    Format("prompts", ("prompt",), _asked("prompt"), _UNASKED),
    Format("messages", ("messages",), _asked("messages"), _UNASKED),
    Format("ShareGPT", ("conversations",), _asked("conversations"), _UNASKED),
    Format("alpaca", ("instruction",), instructed, _UNASKED | {"input", "output"}),
    Format("questions", ("question",), _asked("question"), _UNASKED),
)
DEMONSTRATIONS: tuple[Format[tuple[tuple[Message, ...], ...]], ...] = (
    Format("prompts and completions", ("prompt", "completion"), _completion),
    # UltraChat's `prompt` is the first turn.
    Format("messages", ("messages",), _conversation("messages"), frozenset({"prompt"})),
    Format("ShareGPT", ("conversations",), _conversation("conversations")),
    Format(
        "alpaca",
        ("instruction", "output"),
        _answered("output", "instruction"),
        frozenset({"input"}),
    ),
    Format("orca", ("question", "response"), _answered("response", "question")),
)


def split_system(
    messages: tuple[Message, ...],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(the system turn at the start, if any; the other turns)."""
    start = 1 if messages[0].role == "system" else 0
    return messages[:start], messages[start:]


def check_disjoint(
    train: Iterable[Prompt], held_out: Sequence[Prompt], what: str = "the training prompt"
) -> None:
    """Raise `DataError` if an evaluation prompt has the content of a training prompt; `what` says
    what else the other prompts are."""
    for _ in disjoint(train, held_out, what):
        pass


def disjoint(
    train: Iterable[Prompt], held_out: Sequence[Prompt], what: str = "the training prompt"
) -> Iterator[Prompt]:
    """Yield the training prompts. Raises `DataError` at one with a held-out prompt's content."""
    ids = {content_digest(prompt.messages): prompt.id for prompt in held_out}
    for prompt in train:
        equal = ids.get(content_digest(prompt.messages)) if ids else None
        if equal is not None:
            raise DataError(
                f"the held-out prompt {equal!r} is also {what} {prompt.id!r}; "
                "an evaluation on such prompts proves nothing"
            )
        yield prompt


def split_prompts(prompts: list[Prompt], parts: int, seed: int) -> list[list[Prompt]]:
    """Split prompts into disjoint parts of equal size (± 1 content), by a seeded draw. Prompts with
    the same content are in the same part, in their original order. Raises `DataError` if there are
    fewer distinct prompts than parts."""
    digests = {prompt.id: content_digest(prompt.messages) for prompt in prompts}
    drawn = sorted(set(digests.values()), key=lambda digest: seeded_share(digest, seed))
    if len(drawn) < parts:
        raise DataError(
            f"{counted(len(drawn), 'distinct prompt')} cannot be split into {parts} parts"
        )
    part_of = {digest: rank % parts for rank, digest in enumerate(drawn)}
    split: list[list[Prompt]] = [[] for _ in range(parts)]
    for prompt in prompts:
        split[part_of[digests[prompt.id]]].append(prompt)
    return split


def seeded_share(digest: str, seed: int) -> float:
    """A number in [0, 1) that depends only on a content digest and the seed."""
    drawn = hashlib.sha256(f"{seed}\0{digest}".encode()).digest()
    return int.from_bytes(drawn[:7], "big") / 2**56


def content_digest(messages: tuple[Message, ...]) -> str:
    """SHA-256 of a conversation's texts, ignoring case, white space and forms of Unicode: equal for
    prompts that must not be on both sides of a split."""
    parts = [f"{m.role}\0{' '.join(_composed(m.content).split()).casefold()}" for m in messages]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()


def exact_digest(messages: tuple[Message, ...]) -> str:
    """SHA-256 of a conversation: equal for prompts that are the same for the model. In code, case
    and white space matter."""
    return hashlib.sha256(repr([m.model_dump() for m in messages]).encode()).hexdigest()


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
