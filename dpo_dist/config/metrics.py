"""The metrics for `evaluate.metrics` and the judge `metric`; docs/metrics.md lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import FunctionPath, RecipePath, Resource
from dpo_dist.system.functions import function_file

Better = Literal["higher", "lower"]


class MetricSection(Resource):
    """The common keys of all metrics."""

    label: str = ""
    """Name in tables and in `guard`; each type of metric has a default."""
    better: Better | None = "higher"
    """Which values are better; null: neither, the metric is only descriptive."""

    @model_validator(mode="after")
    def _set_label(self) -> Self:
        if not self.label:
            object.__setattr__(self, "label", self._default_label())  # sections are frozen
        return self

    def _default_label(self) -> str:
        """The label if the run file sets none and the class has no constant one."""
        raise ValueError("`label` must not be empty")


class JsonSchemaMetric(MetricSection):
    """1 if the whole answer is JSON that conforms to the schema, else 0."""

    type: Literal["json_schema"]
    label: str = "Format-conformance"
    schema_path: RecipePath
    """The JSON schema."""

    @property
    def files(self) -> Mapping[str, Path]:
        return {self.schema_path.name: self.schema_path}


class LabelMatchMetric(MetricSection):
    """1 if a field of the JSON answer equals the same field of the prompt's reference, else 0. The
    mean is the accuracy; macro-F1 is reported with it."""

    type: Literal["label_match"]
    label: str = "Label match"
    field: str
    """Name of the field."""
    order: tuple[str | int, ...] = ()
    """Ordinal labels in order; adds the quadratic-weighted kappa."""

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: tuple[str | int, ...]) -> tuple[str | int, ...]:
        if len(set(order)) < len(order) or len(order) == 1:
            raise ValueError("`order` must list two or more labels, each once")
        return order


class FaithfulQuotesMetric(MetricSection):
    """The share of the quotes in a field that occur word for word in the prompt."""

    type: Literal["faithful_quotes"]
    label: str = "Faithfulness"
    field: str
    """Name of the field, a list of quotes."""


class RegexMetric(MetricSection):
    """1 if the pattern matches the answer, or a part of it; else 0."""

    type: Literal["regex"]
    pattern: str
    """A regular expression (Python's `re`)."""
    match: Literal["search", "full"] = "search"
    """search: the pattern matches anywhere. full: it matches the whole answer."""

    def _default_label(self) -> str:
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
    """1 if the answer equals the text, or one of the texts, in a field of the prompt's reference.
    Case, white space and Unicode compatibility forms are ignored; punctuation counts."""

    type: Literal["exact_match"]
    label: str = "Exact match"
    field: str
    """Name of the reference's field: a text, or a list of accepted texts."""


class RougeLMetric(MetricSection):
    """F1 of ROUGE-L against a field of the prompt's reference; with several texts, the best F1."""

    type: Literal["rouge_l"]
    label: str = "ROUGE-L"
    field: str
    """Name of the reference's field: a text, or a list of texts."""


class LengthMetric(MetricSection):
    """Length of the answer. Tokens are those that the engine generated."""

    type: Literal["length"]
    unit: Literal["tokens", "characters"] = "tokens"
    """Unit of the length."""
    better: Better | None = None

    def _default_label(self) -> str:
        return f"Length ({self.unit})"


class StopRateMetric(MetricSection):
    """1 if the answer ended with an end token, 0 if it was cut off."""

    type: Literal["stop_rate"]
    label: str = "Stop rate"


class DistinctMetric(MetricSection):
    """The share of an answer's n-grams of words that are distinct."""

    type: Literal["distinct_n"]
    n: PositiveInt = 2
    """Words per n-gram."""
    better: Better | None = None

    def _default_label(self) -> str:
        return f"Distinct-{self.n}"


class RepetitionMetric(MetricSection):
    """The share of an answer's n-grams of words that occurred earlier in the answer."""

    type: Literal["repetition"]
    n: PositiveInt = 4
    """Words per n-gram."""
    better: Better | None = "lower"

    def _default_label(self) -> str:
        return f"Repeated {self.n}-grams"


class RefusalRateMetric(MetricSection):
    """1 if the answer starts like an English refusal, else 0."""

    type: Literal["refusal_rate"]
    label: str = "Refusal rate"
    better: Better | None = "lower"


class FunctionMetric(MetricSection):
    """Your own function in a file next to the run file or in the working directory. It takes
    (prompt: Prompt, answer: str) and returns a number, or None if the answer has no score."""

    type: Literal["function"]
    path: FunctionPath
    """module:function, such as my_metrics:score."""
    unit: str = Field("share", min_length=1)
    """"share" for numbers from 0 to 1, otherwise the unit of the number."""

    def _default_label(self) -> str:
        return self.path.name

    @property
    def files(self) -> Mapping[str, Path]:
        return {self.path.name: function_file(self.path)}


MetricConfig: TypeAlias = Annotated[
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
    """The reason why a metric cannot compare two texts, or None if it can."""
    if isinstance(metric, StopRateMetric) or (
        isinstance(metric, LengthMetric) and metric.unit == "tokens"
    ):
        return "needs more than the answer's text, but a judge gets only the text"
    if metric.better is None:
        return "does not say which answer is better: set `better` to higher or lower"
    return None
