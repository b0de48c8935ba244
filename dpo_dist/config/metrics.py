"""The metrics that `evaluate.metrics` and the judge `metric` can name; docs/metrics.md has them in
one table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import Section

Better = Literal["higher", "lower"]


class MetricSection(Section):
    """What all metrics have.

    `better` says which way is good; null: neither, the figure only describes. `label` is the
    metric's name in tables and in `guard`; where it is empty, the metric has one of its own.
    """

    label: str = ""
    better: Better | None = "higher"

    @model_validator(mode="after")
    def _is_labelled(self) -> Self:
        if not self.label:
            object.__setattr__(self, "label", self.own_label())  # sections are frozen
        return self

    def own_label(self) -> str:
        """The name of a metric that is given none."""
        raise ValueError("`label` must not be empty")


class JsonSchemaMetric(MetricSection):
    """1 when the answer is nothing but JSON that conforms to the schema, else 0."""

    type: Literal["json_schema"]
    label: str = "Format-conformance"
    schema_path: Path


class LabelMatchMetric(MetricSection):
    """1 when a field of the JSON answer equals the same field of the prompt's reference.

    Its mean is the accuracy; macro-F1 stands beside it. `order` lists ordinal labels from one end
    to the other, and adds the quadratic-weighted kappa.
    """

    type: Literal["label_match"]
    label: str = "Label match"
    field: str
    order: tuple[str | int, ...] = ()

    @field_validator("order")
    @classmethod
    def _distinct(cls, order: tuple[str | int, ...]) -> tuple[str | int, ...]:
        if len(set(order)) < len(order) or len(order) == 1:
            raise ValueError("`order` must list two or more labels, each once")
        return order


class FaithfulQuotesMetric(MetricSection):
    """The share of the quotes in a field that stand word for word in the prompt."""

    type: Literal["faithful_quotes"]
    label: str = "Faithfulness"
    field: str


class RegexMetric(MetricSection):
    """1 when the pattern (Python's `re`) is found in the answer, or is all of it (`full`)."""

    type: Literal["regex"]
    pattern: str
    match: Literal["search", "full"] = "search"

    def own_label(self) -> str:
        return f"Matches {self.pattern}"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class ExactMatchMetric(MetricSection):
    """1 when the answer is the text in a field of the prompt's reference, or one of several.

    Case, white space and Unicode's compatibility forms do not count; punctuation does.
    """

    type: Literal["exact_match"]
    label: str = "Exact match"
    field: str


class RougeLMetric(MetricSection):
    """ROUGE-L's F1 against a field of the prompt's reference; the best of several."""

    type: Literal["rouge_l"]
    label: str = "ROUGE-L"
    field: str


class LengthMetric(MetricSection):
    """How long the answer is; its tokens are those that the engine produced."""

    type: Literal["length"]
    unit: Literal["tokens", "characters"] = "tokens"
    better: Better | None = None

    def own_label(self) -> str:
        return f"Length ({self.unit})"


class StopRateMetric(MetricSection):
    """1 when the answer ended by itself, 0 when it was cut off."""

    type: Literal["stop_rate"]
    label: str = "Stop rate"


class DistinctMetric(MetricSection):
    """The distinct n-grams of words among all of an answer."""

    type: Literal["distinct_n"]
    n: PositiveInt = 2
    better: Better | None = None

    def own_label(self) -> str:
        return f"Distinct-{self.n}"


class RepetitionMetric(MetricSection):
    """The n-grams of words that the answer has had before, among all of it."""

    type: Literal["repetition"]
    n: PositiveInt = 4
    better: Better | None = "lower"

    def own_label(self) -> str:
        return f"Repeated {self.n}-grams"


class RefusalRateMetric(MetricSection):
    """1 when the answer begins like one that declines to help, in English."""

    type: Literal["refusal_rate"]
    label: str = "Refusal rate"
    better: Better | None = "lower"


class FunctionMetric(MetricSection):
    """The user's own: `path` is module:function, beside the run file or in the working directory.

    It takes (prompt: Prompt, answer: str) and returns a number, or None where there is nothing to
    score. `unit` is "share" for numbers from 0 to 1, or what the number counts.
    """

    type: Literal["function"]
    path: Path  # the run file's folder, then module:function
    unit: str = Field("share", min_length=1)

    def own_label(self) -> str:
        return self.path.name

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: Path) -> Path:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", path.name):
            raise ValueError(
                f"{path.name!r} is not of the form module:function, such as my_metrics:score"
            )
        return path


MetricConfig = Annotated[
    JsonSchemaMetric
    | LabelMatchMetric
    | FaithfulQuotesMetric
    | RegexMetric
    | ExactMatchMetric
    | RougeLMetric
    | LengthMetric
    | StopRateMetric
    | DistinctMetric
    | RepetitionMetric
    | RefusalRateMetric
    | FunctionMetric,
    Field(discriminator="type"),
]


def why_no_judge(metric: MetricConfig) -> str | None:
    """Why a metric cannot tell which of two texts is better, or None."""
    if isinstance(metric, StopRateMetric) or (
        isinstance(metric, LengthMetric) and metric.unit == "tokens"
    ):
        return "needs more than the answer's text, and a judge gets nothing else"
    if metric.better is None:
        return "does not say which answer is better: set `better` to higher or lower"
    return None
