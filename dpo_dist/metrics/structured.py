"""Metrics of answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from dpo_dist.errors import ConfigError
from dpo_dist.metrics.metric import Answer, Labels, gold_of
from dpo_dist.storage.records import Prompt

SHORTEST_QUOTE = 8  # characters; shorter quotes occur in any prompt

_NO_JSON = object()


def json_schema(path: Path) -> Callable[[Prompt, Answer], float]:
    """1 if the answer conforms to the schema. Raises `ConfigError` for an unreadable schema."""
    import jsonschema

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        raise ConfigError(f"{path}: not a readable JSON schema: {error}") from None
    validator = kind(schema)

    def score(prompt: Prompt, answer: Answer) -> float:
        value = _parsed(answer.text)
        return float(value is not _NO_JSON and validator.is_valid(value))

    return score


def label_match(field: str) -> Callable[[Prompt, Answer], float]:
    """1 if the answer's field equals the reference's."""

    def score(prompt: Prompt, answer: Answer) -> float:
        return float(_field(answer.text, field) == gold_of(prompt, field))

    return score


def labels(field: str, order: tuple[Hashable, ...]) -> Labels:
    """The labels that `label_match` compares."""
    return Labels(
        gold=lambda prompt: _hashable(gold_of(prompt, field)),
        given=lambda answer: _hashable(_field(answer.text, field)),
        order=order,
    )


def faithful_quotes(field: str) -> Callable[[Prompt, Answer], float]:
    """The share of an answer's quotes that occur in one of the user's turns."""

    def score(prompt: Prompt, answer: Answer) -> float:
        quotes = _field(answer.text, field)
        if not isinstance(quotes, list) or not quotes:
            return 0.0
        sources = [turn.content for turn in prompt.messages if turn.role == "user"]
        faithful = [
            isinstance(quote, str)
            and len(quote) >= SHORTEST_QUOTE
            and any(quote in source for source in sources)
            for quote in quotes
        ]
        return sum(faithful) / len(faithful)

    return score


def _field(text: str, field: str) -> object:
    value = _parsed(text)
    return value.get(field) if isinstance(value, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # repetitive answers may nest very deeply
        return _NO_JSON


def _hashable(label: object) -> Hashable:
    return json.dumps(label, sort_keys=True) if isinstance(label, list | dict) else label
