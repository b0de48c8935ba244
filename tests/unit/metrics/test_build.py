"""Sections of the run file become metrics with a name, a unit and a direction."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from dpo_dist.config import MetricConfig
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.metrics import build_metrics, check_references
from dpo_dist.storage.records import Message, Prompt
from tests.conftest import ROOT

SECTION: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)
LABEL = {"type": "label_match", "field": "severity"}


def build(*sections: dict):
    return build_metrics([SECTION.validate_python(section) for section in sections])


def prompt(number: int, **reference: object) -> Prompt:
    message = Message(role="user", content="q")
    return Prompt(id=f"p{number}", messages=(message,), reference=reference)


def test_each_has_its_name_its_unit_and_its_direction() -> None:
    schema = str(ROOT / "recipes" / "incident_triage" / "answer.schema.json")
    metrics = build(
        {"type": "json_schema", "schema_path": schema},
        LABEL,
        {"type": "faithful_quotes", "field": "evidence"},
        {"type": "regex", "pattern": "a|b"},
        {"type": "exact_match", "field": "text", "label": "Right"},
        {"type": "rouge_l", "field": "text"},
        {"type": "length"},
        {"type": "length", "unit": "characters", "better": "lower"},
        {"type": "stop_rate"},
        {"type": "distinct_n"},
        {"type": "repetition"},
        {"type": "refusal_rate"},
    )
    assert [(m.key, m.label, m.unit, m.better) for m in metrics] == [
        ("json_schema", "Format-conformance", "share", "higher"),
        ("label_match:severity", "Label match", "share", "higher"),
        ("faithful_quotes:evidence", "Faithfulness", "share", "higher"),
        ("regex:search:a|b", "Matches a|b", "share", "higher"),
        ("exact_match:text", "Right", "share", "higher"),
        ("rouge_l:text", "ROUGE-L", "share", "higher"),
        ("length:tokens", "Length (tokens)", "tokens", None),
        ("length:characters", "Length (characters)", "characters", "lower"),
        ("stop_rate", "Stop rate", "share", "higher"),
        ("distinct_n:2", "Distinct-2", "share", None),
        ("repetition:4", "Repeated 4-grams", "share", "lower"),
        ("refusal_rate", "Refusal rate", "share", "lower"),
    ]


def test_the_document_has_every_metric_and_its_example_loads() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|.*\|.*\| (higher|lower|–) \|", document, re.MULTILINE)
    sections = get_args(get_args(MetricConfig)[0])
    directions = {
        get_args(section.model_fields["type"].annotation)[0]: section.model_fields["better"].default
        for section in sections
    }
    assert dict(table) == {kind: better or "–" for kind, better in directions.items()}
    (example,) = re.findall(r"^  metrics:\n((?:    - .*\n)+)", document, re.MULTILINE)
    loaded = [SECTION.validate_python(section) for section in yaml.safe_load(example)]
    assert len(loaded) == 5


def test_two_of_a_kind_are_told_apart_by_their_labels() -> None:
    metrics = build({**LABEL, "label": "A"}, {**LABEL, "label": "B"}, {"type": "stop_rate"})
    assert [metric.key for metric in metrics] == [
        "label_match:severity:A",
        "label_match:severity:B",
        "stop_rate",
    ]
    with pytest.raises(ConfigError, match=r"label_match:severity:A is listed twice"):
        build({**LABEL, "label": "A"}, {**LABEL, "label": "A"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "regex", "pattern": "("}, "not a regular expression: missing"),
        ({**LABEL, "order": ["low"]}, "two or more labels"),
        ({**LABEL, "order": ["low", "low"]}, "each once"),
        ({"type": "distinct_n", "n": 0}, "greater than 0"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SECTION.validate_python(section)


def test_a_reference_that_no_prompt_has_is_a_mistake_of_the_run_file() -> None:
    metrics = build(LABEL, {"type": "stop_rate"})
    check_references(metrics, [prompt(0), prompt(1, severity="low")])
    with pytest.raises(
        DataError,
        match=r"'Label match' compares with reference\.severity, which none of 2 prompts has; "
        r"fields found in the references: sev, team",
    ):
        check_references(metrics, [prompt(0, sev="a"), prompt(1, team="x", severity=None)])


def test_a_label_outside_of_its_order_is_named() -> None:
    metrics = build({**LABEL, "order": ["low", "high"]})
    check_references(metrics, [prompt(0, severity="low"), prompt(1)])
    with pytest.raises(DataError, match=r"'p1' has reference\.severity 'medium'.*'Label match'"):
        check_references(metrics, [prompt(0, severity="low"), prompt(1, severity="medium")])
