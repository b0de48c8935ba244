"""Converts the values of rows to messages: texts, lists of turns, transcripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from dpo_dist.data.readers import Row
from dpo_dist.data.rows import check_text
from dpo_dist.storage.records import Message

# The roles of ShareGPT's `from`, and those of other data sets, in the words of chat templates.
ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"},
    **{"model": "assistant", "observation": "tool", "function": "tool"},
}
# Keys of a turn without a meaning for training.
HARMLESS_TURN_KEYS = frozenset({"id", "timestamp", "language", "turn", "turn_identifier"})
TRANSCRIPT = "\n\nHuman:"  # the start of a conversation in HH-RLHF's form
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_TEXTS = ("name", "reasoning_content", "tool_call_id")


def is_transcript(value: object) -> bool:
    """Whether a value is a conversation as in HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return isinstance(value, str) and value.startswith(TRANSCRIPT)


def messages_of(row: Row, key: str, role: str) -> tuple[Message, ...]:
    """The conversation under `key`: a list of turns, a transcript, or a text as one message of
    `role`. Its last turn is not empty."""
    messages = turns_of(row, key, row.values.get(key), role)
    if role == "user" and is_transcript(row.values.get(key)) and not messages[-1].content:
        messages = messages[:-1]  # "...\n\nAssistant:", without an answer
    if not messages:
        raise row.error(f"`{key}` is missing or empty; expected a text or a list of messages")
    if not messages[-1].content.strip() and messages[-1].is_plain:
        raise row.error(f"`{key}` ends with an empty turn")
    return messages


def instructed(row: Row) -> tuple[Message, ...]:
    """The prompt of a row in alpaca's form: `instruction`, and `input` below it."""
    (message, *others) = messages_of(row, "instruction", "user")
    below = row.values.get("input", "")
    if not isinstance(below, str):
        raise row.error("`input` must be a text")
    check_text(row, "input", below)
    if not below.strip():
        return (message, *others)
    return (message.model_copy(update={"content": f"{message.content}\n{below}"}), *others)


def turns_of(row: Row, key: str, value: object, role: str) -> tuple[Message, ...]:
    """The turns of a value, whose last one may be empty. Lists may also be given as JSON text, as
    in CSV files."""
    if isinstance(value, str):
        check_text(row, key, value)
        if is_transcript(value):
            return _transcript(value)
        parsed = _json_turns(value)
        if parsed is None:
            return (Message.model_validate({"role": role, "content": value}),)
        value = parsed
    if isinstance(value, dict):
        value = [value]
    if value is None:
        return ()
    if not isinstance(value, list):
        raise row.error(f"`{key}` must be a text or a list of messages, not {value!r:.40}")
    return tuple(_message(row, key, turn) for turn in value)


def with_options(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt with the row's `system`, `tools` and `chat_template_kwargs`."""
    for key in ("system", "system_prompt"):
        text = row.values.get(key, "")
        if not isinstance(text, str):
            raise row.error(f"`{key}` must be a text")
        check_text(row, key, text)
        if not text.strip() or messages[0] == Message(role="system", content=text):
            continue
        if messages[0].role == "system":
            raise row.error(f"`{key}` and the conversation have different system messages")
        messages = (Message(role="system", content=text), *messages)
    options: dict[str, str] = {}
    for key, kind, noun in (("tools", list, "a list"), ("chat_template_kwargs", dict, "an object")):
        value = row.values.get(key)
        if isinstance(value, str):
            value = _loads(value) if value.strip() else None
        if value:
            options[key] = _json(row, key, value, kind, noun)
        elif value is not None and not isinstance(value, kind):
            raise row.error(f"`{key}` must be {noun}, also as JSON text")
    return (*messages[:-1], messages[-1].model_copy(update=options)) if options else messages


def _transcript(text: str) -> tuple[Message, ...]:
    _, *parts = _SPEAKER.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Message(role="user" if speaker == "Human" else "assistant", content=said.strip())
        for speaker, said in turns
    )


def _json_turns(text: str) -> list[object] | None:
    """The turns of a text that is a JSON list of objects with roles."""
    start = text.lstrip()
    if not ((start.startswith("[") and '"role"' in start) or '"from"' in start[:40]):
        return None
    found = _loads(text)
    is_list = isinstance(found, list) and found and all(isinstance(turn, dict) for turn in found)
    return found if is_list else None


def _message(row: Row, key: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise row.error(
            f"`{key}` is a list of {type(turn).__name__}; expected a text or a list of messages "
            "{'role', 'content'}"
        )
    own = {name: value for name, value in turn.items() if name not in row.ignored}
    if "from" in own and "role" not in own:  # ShareGPT
        own = {"role": own.pop("from"), "content": own.pop("value", None), **own}
    given, content = own.pop("role", None), own.pop("content", None)
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        known = "|".join(dict.fromkeys(ROLES.values()))
        raise row.error(
            f"`{key}` has a turn that is not {{'role': {known}, 'content': text}}: its role is "
            f"{given!r}"
        )
    fields = _fields(row, key, own)
    if content is None and fields:
        content = ""  # as OpenAI writes an answer that only calls tools
    text = _content(row, key, content)
    check_text(row, key, text)
    return Message.model_validate({"role": role, "content": text, **fields})


def _content(row: Row, key: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise row.error(f"`{key}` has a turn whose content is {content!r:.40}, not a text")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if kind == "text" and isinstance(part, dict) else None
        if not isinstance(text, str):
            raise row.error(
                f"`{key}` has a turn with a part of the type {kind!r}; this project trains on text"
            )
        texts.append(text)
    return "".join(texts)


def _fields(row: Row, key: str, own: dict[str, Any]) -> dict[str, str]:
    """The fields of a turn other than its role and content."""
    fields: dict[str, str] = {}
    for name, value in own.items():
        if value is None or value in ("", []) or name in HARMLESS_TURN_KEYS:
            continue
        if name in _TEXTS and isinstance(value, str):
            check_text(row, key, value)
            fields[name] = value
        elif name == "tool_calls":
            calls = _loads(value) if isinstance(value, str) else value
            fields[name] = _json(row, f"{key}.tool_calls", _decoded(calls), list, "a list")
        else:
            raise row.error(
                f"`{key}` has a turn with the key `{name}`, which is not used. Remove it, or list "
                f"it: `ignore_columns: [{name}]`"
            )
    return fields


def _decoded(calls: Any) -> Any:
    """Tool calls whose arguments are objects. OpenAI writes them as texts, and templates would put
    them in quotes."""
    if not isinstance(calls, list):
        return calls
    decoded = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            arguments = _loads(function["arguments"])
            if isinstance(arguments, dict):
                call = call | {"function": function | {"arguments": arguments}}
        decoded.append(call)
    return decoded


def _json(row: Row, key: str, value: Any, kind: type, noun: str) -> str:
    """A value as JSON text, after checks."""
    inner: Iterable[Any] = value if isinstance(value, list) else ()
    if not isinstance(value, kind) or not all(isinstance(item, dict) for item in inner):
        raise row.error(f"`{key}` must be {noun}{' of objects' if kind is list else ''}")
    text = json.dumps(value, ensure_ascii=False)
    check_text(row, key, text)
    return text


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
