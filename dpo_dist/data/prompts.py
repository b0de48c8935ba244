"""Reads and checks prompts and SFT rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dpo_dist.config import DataSource
from dpo_dist.data.rows import Row, check_text, messages_of, read_rows
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, Prompt
from dpo_dist.system.console import counted


@dataclass(frozen=True)
class Demonstration:
    """A row of the sft phase: a prompt and its answer."""

    id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]


def read_prompts(source: DataSource) -> list[Prompt]:
    """Read prompts from rows `{"id"?, "prompt" | "messages", "reference"?}`, in file order.

    A prompt is a text or a list of messages; a missing id is derived from the content. Raises
    `DataError` naming file and line for a missing prompt, one that does not end with a user turn, a
    duplicate id, and text that cannot be encoded.
    """
    return list(iterate_prompts(source))


def iterate_prompts(source: DataSource) -> Iterator[Prompt]:
    """Like `read_prompts`, but reads the rows one by one."""
    places: dict[str, str] = {}
    for row in read_rows(source):
        prompt = _prompt(row)
        if prompt.id in places:
            first = places[prompt.id]
            raise row.error(f"the id {prompt.id!r} is a duplicate; first used at {first}")
        places[prompt.id] = row.place
        yield prompt


def prompt_of(row: Row, key: str, identifier: str | None) -> Prompt:
    """The prompt under `key`, with the row's `reference`. Without an identifier, it is derived from
    the content. Raises `DataError` naming file and line."""
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
    """Read SFT rows `{"id"?, "prompt", "completion"}` with texts or lists of messages."""
    demonstrations: list[Demonstration] = []
    for row in read_rows(source):
        prompt = messages_of(row, "prompt", "user")
        completion = messages_of(row, "completion", "assistant")
        if [message.role for message in completion] != ["assistant"]:
            raise row.error("`completion` must be a single assistant turn")
        identifier = str(row.values.get("id") or row.place)
        demonstrations.append(Demonstration(identifier, prompt, completion))
    return demonstrations


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
    """SHA-256 of a conversation, ignoring case and white space."""
    parts = [f"{m.role}\0{' '.join(m.content.split()).casefold()}" for m in messages]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()


def _prompt(row: Row) -> Prompt:
    if "prompt" not in row.values and "messages" not in row.values:
        keys = ", ".join(sorted(row.values)) or "nothing"
        raise row.error(f"no `prompt` (or `messages`); the row has {keys}")
    identifier = row.values.get("id")
    if identifier is not None:
        check_text(row, "id", str(identifier))
    key = "prompt" if "prompt" in row.values else "messages"
    return prompt_of(row, key, None if identifier is None else str(identifier))
