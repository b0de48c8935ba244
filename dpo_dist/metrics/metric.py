"""What a metric is, and what it answers where it has nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dpo_dist.config import Better
from dpo_dist.errors import DataError
from dpo_dist.storage.records import FinishReason, Prompt
from dpo_dist.system.console import counted

Reason = Literal["no_reference", "too_short", "no_value", "out_of_range", "failed"]
LONGEST_MESSAGE = 300  # characters of somebody else's error


class NotScored(Exception):
    """A metric has no value for an answer: `reason` is counted, the message says what it met."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """What there is to score.

    `tokens` (as many as the engine produced, the end token included) and `finish_reason` are None
    where only the text is known.
    """

    text: str
    tokens: int | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Labels:
    """The labels behind a metric of right and wrong, for figures that a mean cannot give.

    `given(answer)` is None for an answer without a label. `order` lists ordinal labels from one
    end to the other, and is empty where they have none.
    """

    gold: Callable[[Prompt], Hashable]
    given: Callable[[Answer], Hashable | None]
    order: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A named score of an answer.

    `score` returns a number or raises `NotScored`. With the unit "share" it lies in [0, 1], with
    any other it counts that unit. `better` is None where the figure only describes. `reference`
    is the field of the prompts' reference that it compares with.
    """

    key: str
    label: str
    score: Callable[[Prompt, Answer], float]
    unit: str = "share"
    better: Better | None = "higher"
    reference: str | None = None
    labels: Labels | None = None


def attempt(metric: Metric, prompt: Prompt, answer: Answer) -> float:
    """The score. Raises `NotScored`, which names the metric, for whatever keeps it from giving
    one: one answer must not cost the others theirs."""
    try:
        value = float(metric.score(prompt, answer))
        if not math.isfinite(value) or (metric.unit == "share" and not 0 <= value <= 1):
            raise NotScored("out_of_range", f"{value:g} is not a valid {metric.unit}")
    except NotScored as error:
        raise NotScored(error.reason, f"{metric.label}: {error}") from error
    except Exception as error:
        # The error may quote the answer: what is not printable is named, not shown.
        said = repr(" ".join(str(error).split())[:LONGEST_MESSAGE])[1:-1]
        message = f"{metric.label}: {type(error).__name__}: {said}"
        raise NotScored("failed", message) from error
    return value


def gold_of(prompt: Prompt, field: str) -> Any:
    """A field of the prompt's reference. Raises `NotScored` where it is absent or null."""
    gold = prompt.reference.get(field)
    if gold is None:
        raise NotScored("no_reference", f"the prompt has no reference.{field} to compare with")
    return gold


def check_references(metrics: Iterable[Metric], prompts: Sequence[Prompt]) -> None:
    """Raises `DataError` for a metric that compares with what no prompt has, and for a label that
    is none of those that the metric puts in order."""
    for metric in metrics:
        field = metric.reference
        if field is None:
            continue
        have = [prompt for prompt in prompts if prompt.reference.get(field) is not None]
        if not have:
            found = (prompt.reference.items() for prompt in prompts)
            keys = sorted({key for items in found for key, value in items if value is not None})
            raise DataError(
                f"the metric {metric.label!r} compares with reference.{field}, which none of "
                f"{counted(len(prompts), 'prompt')} has; fields found in the references: "
                f"{', '.join(keys) or 'none'}"
            )
        if metric.labels and metric.labels.order:
            for prompt in have:
                gold = metric.labels.gold(prompt)
                if gold not in metric.labels.order:
                    raise DataError(
                        f"the prompt {prompt.id!r} has reference.{field} {gold!r}, which is not "
                        f"in the `order` of the metric {metric.label!r}"
                    )
