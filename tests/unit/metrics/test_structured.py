import json
from pathlib import Path

import pytest

from dpo_dist.config.metrics import FaithfulQuotesMetric, JsonSchemaMetric, LabelMatchMetric
from dpo_dist.errors import ConfigError
from dpo_dist.metrics import Answer, NotScored, build_metric
from dpo_dist.storage.records import Message, Prompt
from tests.conftest import ROOT

PROMPT = Prompt(
    id="p",
    messages=(Message(role="user", content="api: 12% of requests fail\nno way around it"),),
    reference={"severity": "SEV2"},
)
SCHEMA = ROOT / "recipes" / "incident_triage" / "answer.schema.json"


def answer(**changes: object) -> str:
    fields = {"severity": "SEV2", "summary": "s", "evidence": ["12% of requests fail"]}
    return json.dumps(fields | changes)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (answer(), 1),
        ("  " + answer() + "\n", 1),
        ("Sure! " + answer(), 0),
        (answer() + answer(), 0),
        (answer(severity="SEV5"), 0),
        (answer(evidence=[]), 0),
        (answer(more=1), 0),
        ("[]", 0),
        ("", 0),
    ],
)
def test_format(text: str, value: float) -> None:
    metric = build_metric(JsonSchemaMetric(type="json_schema", schema_path=SCHEMA))
    assert metric.score(PROMPT, Answer(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [(answer(), 1), (answer(severity="SEV1"), 0), ("SEV2", 0), ('["SEV2"]', 0), ("{}", 0)],
)
def test_label(text: str, value: float) -> None:
    metric = build_metric(LabelMatchMetric(type="label_match", field="severity"))
    assert metric.score(PROMPT, Answer(text)) == value


def test_an_answer_that_nests_without_end_is_no_json() -> None:
    """A model that repeats itself; Python's parser gives up with a RecursionError."""
    nested = Answer("[" * 200_000)
    schema = JsonSchemaMetric(type="json_schema", schema_path=SCHEMA)
    label = LabelMatchMetric(type="label_match", field="severity")
    assert [build_metric(section).score(PROMPT, nested) for section in (schema, label)] == [0, 0]


@pytest.mark.parametrize("reference", [{}, {"severity": None}])
def test_a_prompt_without_the_label_is_not_scored(reference: dict) -> None:
    """Nor does an answer without one match it."""
    metric = build_metric(LabelMatchMetric(type="label_match", field="severity"))
    prompt = PROMPT.model_copy(update={"reference": reference})
    for text in (answer(), "{}"):
        with pytest.raises(NotScored, match=r"no reference\.severity") as caught:
            metric.score(prompt, Answer(text))
        assert caught.value.reason == "no_reference"


@pytest.mark.parametrize(
    ("evidence", "value"),
    [
        (["12% of requests fail"], 1),
        (["12% of requests fail", "13% of requests fail"], 0.5),
        (["12% of requests fail", "no way around it"], 1),
        (["fail"], 0),
        ([], 0),
        ("12% of requests fail", 0),
        ([7, "no way around it"], 0.5),
    ],
)
def test_quotes(evidence: object, value: float) -> None:
    metric = build_metric(FaithfulQuotesMetric(type="faithful_quotes", field="evidence"))
    assert metric.score(PROMPT, Answer(answer(evidence=evidence))) == value


def test_an_unreadable_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    for content in (None, "{", '{"type": 3}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=r"s\.json: not a readable JSON schema"):
            build_metric(JsonSchemaMetric(type="json_schema", schema_path=path))
