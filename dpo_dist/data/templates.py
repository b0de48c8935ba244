"""Tries the chat template on the first rows, in the ways that later phases need, before anything is
paid for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from dpo_dist.config import DataSource, Slot
from dpo_dist.data.chat import completion_ids, prompt_text
from dpo_dist.data.prompts import Demonstration, split_system
from dpo_dist.data.rendering import Unrendered
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, PreferencePair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIED = 1000  # rows of a source; of these, the first one with each sequence of roles

# A row's place, its prompt and its answers.
Example = tuple[str, Sequence[Message], Sequence[str | Message]]


def slot_messages(prompt: Prompt, slot: Slot) -> tuple[Message, ...]:
    """The conversation with a slot's system message and examples."""
    messages = prompt.messages
    if slot.system is not None:
        others = (message for message in messages if message.role != "system")
        messages = (Message(role="system", content=slot.system), *others)
    system, turns = split_system(messages)
    return (*system, *slot.few_shot, *turns)


def try_prompts(
    tokenizer: PreTrainedTokenizerBase,
    source: DataSource,
    prompts: Iterable[Prompt],
    slots: Sequence[Slot] = (),
) -> None:
    """Render prompts of a source by themselves and for each slot. Raises `DataError` with the
    prompt's place."""

    def examples() -> Iterator[Example]:
        for number, prompt in enumerate(prompts, start=1):
            place = f"{_name(source)}: prompt {number} ({prompt.id!r})"
            yield place, prompt.messages, ()
            for index, slot in enumerate(slots):
                yield f"{place}, sample.slots.{index}", slot_messages(prompt, slot), ()

    _try(tokenizer, islice(examples(), TRIED * (1 + len(slots))))


def try_demonstrations(
    tokenizer: PreTrainedTokenizerBase, source: DataSource, rows: Sequence[Demonstration]
) -> None:
    """Render SFT rows with their answers. Raises `DataError` with the row's place."""
    examples = (
        (f"{_name(source)}: row {number} ({row.id!r})", row.prompt, [row.completion])
        for number, row in enumerate(rows[:TRIED], start=1)
    )
    _try(tokenizer, examples)


def try_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> None:
    """Render preference pairs from elsewhere with their answers. Raises `DataError` with the pair's
    prompt id."""
    examples = (
        (f"preferences: the pair {pair.prompt_id!r}", pair.prompt, pair.answers)
        for pair in pairs[:TRIED]
    )
    _try(tokenizer, examples)


def _name(source: DataSource) -> str:
    return str(source.path or source.dataset)


def _try(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example]) -> None:
    seen: set[tuple[str, ...]] = set()
    for place, prompt, answers in examples:
        roles = tuple(message.role for message in prompt)
        if roles in seen:
            continue
        seen.add(roles)
        try:
            _try_one(tokenizer, prompt, answers)
        except Unrendered as error:
            raise DataError(f"{place}: {error}. {_remedy(tokenizer, prompt, answers)}") from None


def _try_one(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str | Message]
) -> None:
    text = prompt_text(tokenizer, prompt)
    for message in prompt:
        # Many templates leave out the thoughts of earlier answers, as they should.
        if message.role != "assistant" and message.content.strip() not in text:
            raise Unrendered(f"the chat template leaves out the {message.role} turn")
    for answer in answers:
        completion_ids(tokenizer, prompt, answer)


def _remedy(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answers: Sequence[str | Message]
) -> str:
    template = "set `model.chat_template` to the path of a template that supports it"
    others = [message for message in prompt if message.role != "system"]
    if len(others) < len(prompt):
        try:
            _try_one(tokenizer, others, answers)
        except Unrendered:
            pass
        else:
            return (
                "It works without the system message: move its text into the user's turn, or "
                f"{template}."
            )
    if answers:
        return (
            "Training on this answer would train something else. Remove its thought, set "
            "`model.chat_template_kwargs` (such as `enable_thinking: false`), or set "
            "`model.chat_template` to the path of a template that renders answers as they are."
        )
    return f"Change the prompt, or {template}."
