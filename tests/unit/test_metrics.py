import json
from pathlib import Path

import pytest

from dpo_dist.config import FaithfulQuotesMetric, JsonSchemaMetric, LabelMatchMetric, MetricJudge
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.judging.judge import Comparison, build_judge
from dpo_dist.metrics import build_metric
from dpo_dist.records import Message, Prompt
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
    assert (
        build_metric(JsonSchemaMetric(type="json_schema", schema_path=SCHEMA)).score(PROMPT, text)
        == value
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [(answer(), 1), (answer(severity="SEV1"), 0), ("SEV2", 0), ('["SEV2"]', 0), ("{}", 0)],
)
def test_label(text: str, value: float) -> None:
    metric = build_metric(LabelMatchMetric(type="label_match", field="severity"))
    assert metric.score(PROMPT, text) == value


def test_a_prompt_without_a_reference_is_named() -> None:
    metric = build_metric(LabelMatchMetric(type="label_match", field="team"))
    with pytest.raises(DataError, match=r"'p' has no reference\.team"):
        metric.score(PROMPT, answer())


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
    assert metric.score(PROMPT, answer(evidence=evidence)) == value


def test_an_unreadable_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    for content in (None, "{", '{"type": 3}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=r"s\.json: not a readable JSON schema"):
            build_metric(JsonSchemaMetric(type="json_schema", schema_path=path))


def test_the_metric_judge_weighs_its_metrics(tmp_path: Path) -> None:
    metrics = (
        LabelMatchMetric(type="label_match", field="severity"),
        FaithfulQuotesMetric(type="faithful_quotes", field="evidence"),
    )
    right_label = answer(evidence=["invented text"])
    right_quote = answer(severity="SEV4")

    def prefer(weights: tuple[float, ...]) -> str:
        judge = build_judge(MetricJudge(type="metric", metrics=metrics, weights=weights), tmp_path)
        ((ballot,),) = judge.compare([Comparison(PROMPT, "a", "b", right_label, right_quote)])
        return ballot.outcome

    assert prefer(()) == "tie"
    assert prefer((2, 1)) == "first"
    assert prefer((1, 2)) == "second"
