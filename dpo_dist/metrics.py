"""Metrics: what an answer is worth without asking anybody. Judges and evaluation share them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.config import FaithfulQuotesMetric, JsonSchemaMetric, LabelMatchMetric
from dpo_dist.config import Metric as MetricConfig
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.records import Prompt

# A quote of a word or two is found in any prompt and supports nothing.
SHORTEST_QUOTE = 8


@dataclass(frozen=True)
class Metric:
    """A named score. `score(prompt, answer)` lies in [0, 1]; higher is better."""

    key: str
    label: str
    score: Callable[[Prompt, str], float]


def build_metric(config: MetricConfig) -> Metric:
    """The metric that a section of the run file describes.

    Raises `ConfigError` for a schema file that is missing or no JSON schema.
    """
    match config:
        case JsonSchemaMetric():
            return Metric(config.type, config.label, _json_schema(config.schema_path))
        case LabelMatchMetric():
            return Metric(f"{config.type}:{config.field}", config.label, _label_match(config.field))
        case FaithfulQuotesMetric():
            return Metric(
                f"{config.type}:{config.field}", config.label, _faithful_quotes(config.field)
            )


def _json_schema(path: Path) -> Callable[[Prompt, str], float]:
    import jsonschema

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        raise ConfigError(f"{path}: not a readable JSON schema: {error}") from None
    validator = kind(schema)

    def score(prompt: Prompt, answer: str) -> float:
        try:
            value = json.loads(answer)
        except ValueError:
            return 0.0
        return float(validator.is_valid(value))

    return score


def _label_match(field: str) -> Callable[[Prompt, str], float]:
    def score(prompt: Prompt, answer: str) -> float:
        if field not in prompt.reference:
            raise DataError(f"the prompt {prompt.id!r} has no reference.{field} to compare with")
        return float(_field(answer, field) == prompt.reference[field])

    return score


def _faithful_quotes(field: str) -> Callable[[Prompt, str], float]:
    def score(prompt: Prompt, answer: str) -> float:
        quotes = _field(answer, field)
        if not isinstance(quotes, list) or not quotes:
            return 0.0
        source = prompt.messages[-1].content
        faithful = [
            isinstance(quote, str) and len(quote) >= SHORTEST_QUOTE and quote in source
            for quote in quotes
        ]
        return sum(faithful) / len(faithful)

    return score


def _field(answer: str, field: str) -> Any:
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value.get(field) if isinstance(value, dict) else None
