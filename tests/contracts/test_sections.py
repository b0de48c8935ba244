"""Every kind of judge, engine, metric and loss that a run file may name is built by somebody, and
says what it needs besides the run file."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pytest
from pydantic import Field
from trl import DPOTrainer

from dpo_dist.config import (
    BilledJudge,
    ClaudeConfig,
    EngineConfig,
    FunctionJudgeConfig,
    JudgeConfig,
    MetricConfig,
    MetricJudgeConfig,
    OpenAiConfig,
    Resource,
    ScorerConfig,
    Section,
    Train,
)
from dpo_dist.config.metrics import StopRateMetric
from dpo_dist.generation import build as engines
from dpo_dist.judging import build as judges
from dpo_dist.losses import LOSSES, LossName, first_loss
from dpo_dist.metrics import build as metrics
from tests.field_reads import sections

RESOURCES = sorted(
    (kind for kind in sections() if issubclass(kind, Resource)), key=lambda kind: kind.__name__
)
MODEL = {"model": "m", "rubric": "rubric.md"}
SCHEMA = {"type": "json_schema", "schema_path": "schema.json"}
# The least that every resource has to be given.
LEAST: dict[str, dict[str, Any]] = {
    "ClaudeConfig": {"type": "claude", **MODEL},
    "OpenAiConfig": {"type": "openai_compatible", "base_url": "http://a/v1", **MODEL},
    "RewardModelConfig": {"type": "reward_model", "model": "m"},
    "HumanConfig": {"type": "human", "sheet": "sheet.csv"},
    "MetricJudgeConfig": {"type": "metric", "metrics": [SCHEMA]},
    "FunctionJudgeConfig": {"type": "function", "path": "os:getenv"},
    "VllmEngine": {"type": "vllm"},
    "VllmServer": {"type": "vllm_server", "urls": ["http://a"]},
    "HfEngine": {"type": "hf"},
    "JsonSchemaMetric": SCHEMA,
    "LabelMatchMetric": {"type": "label_match", "field": "f"},
    "FaithfulQuotesMetric": {"type": "faithful_quotes", "field": "f"},
    "RegexMetric": {"type": "regex", "pattern": "p"},
    "ExactMatchMetric": {"type": "exact_match", "field": "f"},
    "RougeLMetric": {"type": "rouge_l", "field": "f"},
    "LengthMetric": {"type": "length"},
    "StopRateMetric": {"type": "stop_rate"},
    "DistinctMetric": {"type": "distinct_n"},
    "RepetitionMetric": {"type": "repetition"},
    "RefusalRateMetric": {"type": "refusal_rate"},
    "FunctionMetric": {"type": "function", "path": "os:getenv"},
    "Benchmarks": {"tasks": ["t"]},
}
# Files that answers do not depend on (a sheet is written for people, and prices decide nothing),
# and a folder, whose digest the evaluation takes by itself.
APART = {"sheet", "prices", "include_path"}


def members(union: object) -> tuple[type[Section], ...]:
    """The classes of `Annotated[A | B, ...]`."""
    return typing.get_args(typing.get_args(union)[0])


def syntax(code: Callable[..., object]) -> list[ast.AST]:
    return list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))))


def cases(builder: Callable[..., object]) -> set[str]:
    """The classes that a `match` in the function takes, whatever their keys are."""
    found = (node for node in syntax(builder) if isinstance(node, ast.match_case))
    return {name for case in found if case.guard is None for name in _taken(case.pattern)}


def _taken(pattern: ast.pattern) -> Iterator[str]:
    match pattern:
        case ast.MatchOr():
            for one in pattern.patterns:
                yield from _taken(one)
        case ast.MatchClass(cls=ast.Name(id=name), patterns=[], kwd_attrs=[]):
            yield name


def without_case(union: object, builder: Callable[..., object]) -> set[str]:
    """The classes of the union that the function has no case for."""
    return {member.__name__ for member in members(union)} - cases(builder)


@pytest.mark.parametrize(
    ("union", "builder"),
    [
        (JudgeConfig, judges.build_judge),
        (ScorerConfig, judges._language_model),
        (EngineConfig, engines.build_engine),
        (MetricConfig, metrics._metric),
    ],
    ids=["judges", "scorers", "engines", "metrics"],
)
def test_every_class_has_a_case_where_it_is_built(
    union: object, builder: Callable[..., object]
) -> None:
    assert len(members(union)) > 1
    assert without_case(union, builder) == set()


def test_a_class_without_a_case_is_found() -> None:
    class Added(Resource):
        type: Literal["added"]

    judge: TypeAlias = Annotated[MetricJudgeConfig | Added, Field(discriminator="type")]
    metric: TypeAlias = Annotated[StopRateMetric | Added, Field(discriminator="type")]
    assert without_case(judge, judges.build_judge) == {"Added"}
    assert without_case(metric, metrics._metric) == {"Added"}


def test_a_case_for_some_of_a_class_is_none_for_the_class() -> None:
    def build(section: object) -> object:
        match section:
            case ClaudeConfig(transport="batch"):
                return 1
            case OpenAiConfig() if section.model:
                return 2
            case MetricJudgeConfig() | StopRateMetric():
                return 3

    assert cases(build) == {"MetricJudgeConfig", "StopRateMetric"}


def test_every_loss_has_its_value_at_the_start_and_is_trl_s() -> None:
    names = typing.get_args(LossName)
    assert set(names) == set(LOSSES)
    computed = syntax(DPOTrainer._compute_loss)
    assert set(names) <= {node.value for node in computed if isinstance(node, ast.Constant)}
    for name in names:
        # `sft` alone is no preference loss, and has no value that is known beforehand.
        loss = {name: 1.0, "sigmoid": 1.0} if name == "sft" else name
        smoothing = 0.1 if LOSSES[name].uses_smoothing else 0.0
        train = Train(loss=loss, label_smoothing=smoothing, micro_batch_size=2)
        first = first_loss(train.loss, train.beta, train.label_smoothing)
        assert (first is None) == (name == "sft"), name


def in_full(kind: type[Resource]) -> Resource:
    """An example in which every file and every environment variable is named."""
    fields = kind.model_fields
    files = {key: "a.file" for key, field in fields.items() if names_a_path(field.annotation)}
    variables = {key: "A_KEY" for key in fields if key.endswith("_variable")}
    return kind.model_validate(files | variables | LEAST[kind.__name__])


def names_a_path(annotation: object) -> bool:
    return annotation is Path or any(map(names_a_path, typing.get_args(annotation)))


def test_what_answers_judges_or_measures_is_a_resource() -> None:
    for union in (JudgeConfig, ScorerConfig, EngineConfig, MetricConfig):
        assert set(members(union)) <= set(RESOURCES)


@pytest.mark.parametrize("kind", RESOURCES, ids=lambda kind: kind.__name__)
def test_a_resource_says_what_it_needs(kind: type[Resource]) -> None:
    assert kind.__name__ in LEAST, "give the least that it needs"
    section = in_full(kind)
    assert isinstance(section.noun, str) and section.noun
    assert isinstance(section.paid, bool) and isinstance(section.needs_gpu, bool)
    assert not section.paid or isinstance(section, BilledJudge), "who counts and limits the bill?"
    keys, files = section.key_variables, section.files
    assert all(isinstance(name, str) and isinstance(needed, bool) for name, needed in keys.items())
    assert all(isinstance(name, str) and isinstance(path, Path) for name, path in files.items())
    assert {value for key, value in section if key.endswith("_variable")} <= keys.keys()
    named = {value.name for key, value in section if isinstance(value, Path) and key not in APART}
    tuples = [value for _, value in section if isinstance(value, tuple)]
    inner = [part for value in tuples for part in value if isinstance(part, Resource)]
    assert named.union(*(part.files for part in inner)) <= files.keys()
    runs_weights = section.needs_gpu and "model" in kind.model_fields
    assert section.model_path == (dict(section)["model"] if runs_weights else None)


def test_what_resources_need_is_what_they_say() -> None:
    """Paid ones by the key or by a declared price; local models by the GPU."""
    found = {kind.__name__: in_full(kind) for kind in RESOURCES}
    paid = {name for name, section in found.items() if section.paid}
    assert paid == {"ClaudeConfig", "OpenAiConfig"}
    assert FunctionJudgeConfig.model_validate(LEAST["FunctionJudgeConfig"] | {"price": 1.0}).paid
    on_gpus = {name for name, section in found.items() if section.needs_gpu}
    assert on_gpus == {"VllmEngine", "HfEngine", "RewardModelConfig", "Benchmarks"}
    assert {name: dict(s.key_variables) for name, s in found.items() if s.key_variables} == {
        "ClaudeConfig": {"ANTHROPIC_API_KEY": True},
        "OpenAiConfig": {"A_KEY": False},
        "VllmServer": {"A_KEY": True},
    }
