"""Prompts and SFT rows, checked before any work begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dpo_dist.config import DataSource
from dpo_dist.data.rows import Row, check_text, iterate_rows, messages_of, read_rows
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, Prompt
from dpo_dist.system.console import counted


@dataclass(frozen=True)
class Demonstration:
    """A row of the sft phase: a prompt and the answer to imitate."""

    id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]


def read_prompts(source: DataSource) -> list[Prompt]:
    """Prompts from rows `{"id"?, "prompt" | "messages", "reference"?}`, in file order.

    `prompt` is a text or a list of messages; a missing id is derived from the content.
    Raises `DataError` (file:line) for a row without a prompt, one that does not end with the
    user's turn, an id that occurs twice, and text that cannot be encoded.
    """
    return list(iterate_prompts(source))


def iterate_prompts(source: DataSource) -> Iterator[Prompt]:
    """`read_prompts`, one by one; the errors come as the rows do."""
    places: dict[str, str] = {}
    for row in iterate_rows(source):
        prompt = _prompt(row)
        if prompt.id in places:
            raise row.error(
                f"the id {prompt.id!r} is a duplicate; first used at {places[prompt.id]}"
            )
        places[prompt.id] = row.place
        yield prompt


def prompt_of(row: Row, key: str, identifier: str | None) -> Prompt:
    """The prompt under `key`, with the row's `reference`. Without an identifier, the prompt has
    one of its content. Raises `DataError` naming the row's place."""
    messages = messages_of(row, key, "user")
    if messages[-1].role != "user":
        raise row.error(f"`{key}` must end with a user turn, not {messages[-1].role}")
    reference = row.values.get("reference") or {}
    if not isinstance(reference, dict):
        raise row.error("`reference` must be an object")
    check_text(row, "reference", json.dumps(reference, ensure_ascii=False, default=str))
    if identifier is None:
        identifier = content_digest(messages)[:16]
    return Prompt(id=identifier, messages=messages, reference=reference)


def read_demonstrations(source: DataSource) -> list[Demonstration]:
    """SFT rows `{"id"?, "prompt", "completion"}`; texts or lists of messages."""
    demonstrations: list[Demonstration] = []
    for row in read_rows(source):
        prompt = messages_of(row, "prompt", "user")
        completion = messages_of(row, "completion", "assistant")
        if [message.role for message in completion] != ["assistant"]:
            raise row.error("`completion` must be a single assistant turn")
        demonstrations.append(
            Demonstration(str(row.values.get("id") or row.place), prompt, completion)
        )
    return demonstrations


def check_disjoint(train: Iterable[Prompt], held_out: Sequence[Prompt]) -> None:
    """Refuse an evaluation prompt that is also a training prompt, by content."""
    for _ in disjoint(train, held_out):
        pass


def disjoint(train: Iterable[Prompt], held_out: Sequence[Prompt]) -> Iterator[Prompt]:
    """The training prompts, one by one. Raises `DataError` at one that is held out, by content."""
    kept_apart = {content_digest(prompt.messages): prompt.id for prompt in held_out}
    for prompt in train:
        twin = kept_apart.get(content_digest(prompt.messages)) if kept_apart else None
        if twin is not None:
            raise DataError(
                f"the held-out prompt {twin!r} is also the training prompt {prompt.id!r}; "
                "an evaluation on training prompts proves nothing"
            )
        yield prompt


def split_prompts(prompts: list[Prompt], parts: int, seed: int) -> list[list[Prompt]]:
    """Cut prompts into disjoint parts, as equal as can be, by a seeded draw by content.

    Prompts of the same content stay together, so that no part repeats what another has; within
    a part they keep their order. Raises `DataError` where there are fewer prompts than parts.
    """
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
    """A number in [0, 1) that is drawn from a content's digest, whatever else there is."""
    drawn = hashlib.sha256(f"{seed}\0{digest}".encode()).digest()
    return int.from_bytes(drawn[:7], "big") / 2**56


def content_digest(messages: tuple[Message, ...]) -> str:
    """A conversation's identity, blind to case and white space."""
    parts = [f"{m.role}\0{' '.join(m.content.split()).casefold()}" for m in messages]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()


def _prompt(row: Row) -> Prompt:
    if "prompt" not in row.values and "messages" not in row.values:
        near = ", ".join(sorted(row.values)) or "nothing"
        raise row.error(f"no `prompt` (or `messages`); the row has {near}")
    identifier = row.values.get("id")
    if identifier is not None:
        check_text(row, "id", str(identifier))
    key = "prompt" if "prompt" in row.values else "messages"
    return prompt_of(row, key, None if identifier is None else str(identifier))
