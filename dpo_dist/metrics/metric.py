"""The interface of a metric, and the errors of answers that it cannot score."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from dpo_dist.config import Better
from dpo_dist.errors import DataError
from dpo_dist.storage.records import FinishReason, Prompt
from dpo_dist.system.console import counted
from dpo_dist.system.functions import shown_error

Reason = Literal["no_reference", "too_short", "no_value", "out_of_range", "failed"]


class NotScored(Exception):
    """A metric cannot score an answer. The evaluation counts the `reason`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """An answer to score. `tokens` counts the generated tokens, including the end token; it and
    `finish_reason` are None if only the text is known."""

    text: str
    tokens: int | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Labels:
    """The labels that a metric compares, for statistics of all labels together. `given(answer)` is
    None for an answer without a label. `order` lists ordinal labels in their order; it is empty for
    other labels."""

    gold: Callable[[Prompt], Hashable]
    given: Callable[[Answer], Hashable | None]
    order: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A named score of an answer.

    `score` returns a number or raises `NotScored`. With the unit "share", it lies in [0, 1]; any
    other unit is what it counts. `better` is None if no direction is better. `reference` is the
    field of the prompts' reference to compare with.
    """

    key: str
    label: str
    score: Callable[[Prompt, Answer], float]
    unit: str = "share"
    better: Better | None = "higher"
    reference: str | None = None
    labels: Labels | None = None


def attempt(metric: Metric, prompt: Prompt, answer: Answer) -> float:
    """The score. Raises `NotScored`, naming the metric, for any error, so that one answer does not
    stop the others."""
    try:
        value = float(metric.score(prompt, answer))
        if not math.isfinite(value) or (metric.unit == "share" and not 0 <= value <= 1):
            raise NotScored("out_of_range", f"{value:g} is not a valid {metric.unit}")
    except NotScored as error:
        raise NotScored(error.reason, f"{metric.label}: {error}") from error
    except Exception as error:
        raise NotScored("failed", f"{metric.label}: {shown_error(error)}") from error
    return value


def gold_of(prompt: Prompt, field: str) -> JsonValue:
    """A field of the prompt's reference. Raises `NotScored` if it is absent or null."""
    gold = prompt.reference.get(field)
    if gold is None:
        raise NotScored("no_reference", f"the prompt has no reference.{field} to compare with")
    return gold


def check_references(metrics: Iterable[Metric], prompts: Sequence[Prompt]) -> None:
    """Raise `DataError` for a metric whose reference field no prompt has, and for a label that is
    not in the metric's `order`."""
    for metric in metrics:
        field = metric.reference
        if field is None:
            continue
        labelled = [prompt for prompt in prompts if prompt.reference.get(field) is not None]
        if not labelled:
            references = [prompt.reference for prompt in prompts]
            keys = sorted({key for found in references for key in found if found[key] is not None})
            raise DataError(
                f"the metric {metric.label!r} compares with reference.{field}, which none of "
                f"{counted(len(prompts), 'prompt')} has; fields found in the references: "
                f"{', '.join(keys) or 'none'}"
            )
        if metric.labels and metric.labels.order:
            for prompt in labelled:
                gold = metric.labels.gold(prompt)
                if gold not in metric.labels.order:
                    raise DataError(
                        f"the prompt {prompt.id!r} has reference.{field} {gold!r}, which is not "
                        f"in the `order` of the metric {metric.label!r}"
                    )
