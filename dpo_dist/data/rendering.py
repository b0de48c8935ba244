"""Renders conversations with a model's chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dpo_dist.errors import ModelError
from dpo_dist.storage.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn: TypeAlias = dict[str, Any]
TEMPLATE_OPTIONS = ("tools", "chat_template_kwargs")  # fields of a turn that are no part of it
_LEFT_OUT = (
    "the chat template leaves out the `{0}` of a row, so that it would not be trained on. Use a "
    "model whose template has it, or `ignore_columns: [{0}]`"
)


class Unrendered(ModelError):
    """The chat template cannot render a conversation, or changes its answer."""


def turn_of(answer: str | Message) -> Message:
    """An answer as a turn."""
    return Message(role="assistant", content=answer) if isinstance(answer, str) else answer


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    """Render a conversation with the template's options that its row has. Raises `Unrendered` if
    the template does not support it, or leaves out a part."""
    from jinja2.exceptions import TemplateError

    turns = [_turn(message) for message in messages]
    given = {key: turn[key] for turn in turns for key in TEMPLATE_OPTIONS if key in turn}
    variables = given.pop("chat_template_kwargs", {})
    turns = [{k: turn[k] for k in turn if k not in TEMPLATE_OPTIONS} for turn in turns]
    try:
        text = str(
            tokenizer.apply_chat_template(turns, tokenize=False, **options, **variables, **given)
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise Unrendered(f"the chat template cannot render it: {error}") from None
    parts = {
        "tools": _names(given.get("tools", [])),
        "tool_calls": [name for turn in turns for name in _names(turn.get("tool_calls", []))],
        # Templates show the last thought only.
        "reasoning_content": [turns[-1].get("reasoning_content", "")],
    }
    for key, words in parts.items():
        if any(word.strip() not in text for word in words):
            raise Unrendered(_LEFT_OUT.format(key))
    for key in variables:
        if key not in str(tokenizer.chat_template):
            raise Unrendered(_LEFT_OUT.format("chat_template_kwargs") + f" (`{key}`)")
    return text


def _turn(message: Message) -> Turn:
    """The turn as templates expect it: tool calls and options are objects."""
    turn: Turn = message.model_dump()
    objects = ("tool_calls", *TEMPLATE_OPTIONS)
    return turn | {key: json.loads(turn[key]) for key in objects if key in turn}


def _names(calls: list[Any]) -> list[str]:
    """The names of tools, or of the called ones."""
    return [str(call.get("function", call).get("name", "")) for call in calls]
