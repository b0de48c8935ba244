import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo_dist.config import MetricJudgeConfig
from dpo_dist.judging.build import build_judge
from dpo_dist.judging.judge import Comparison
from dpo_dist.storage.records import Ballot, Message, Prompt

PROMPT = Prompt(
    id="p",
    messages=(Message(role="user", content="api: 12% of requests fail\nno way around it"),),
    reference={"severity": "SEV2"},
)
LABEL = {"type": "label_match", "field": "severity"}
QUOTES = {"type": "faithful_quotes", "field": "evidence"}


def answer(severity: str, quote: str) -> str:
    return json.dumps({"severity": severity, "evidence": [quote]})


def ballot(
    tmp_path: Path,
    first: str,
    second: str,
    *metrics: dict,
    weights: tuple[float, ...] = (),
    prompt: Prompt = PROMPT,
) -> Ballot:
    section = {"type": "metric", "metrics": metrics, "weights": weights}
    judge = build_judge(MetricJudgeConfig.model_validate(section), tmp_path)
    ((cast,),) = judge.compare([Comparison(prompt, "a", "b", first, second)])
    return cast


def test_the_metrics_are_weighed(tmp_path: Path) -> None:
    right_label = answer("SEV2", "invented text")
    right_quote = answer("SEV4", "12% of requests fail")

    def prefer(weights: tuple[float, ...]) -> str:
        cast = ballot(tmp_path, right_label, right_quote, LABEL, QUOTES, weights=weights)
        return cast.outcome

    assert prefer(()) == "tie"
    assert prefer((2, 1)) == "first"
    assert prefer((1, 2)) == "second"


def test_lower_is_better_where_a_metric_says_so(tmp_path: Path) -> None:
    looping, sound = "so it is so it is so it is so it is", "it is what the log says"
    assert ballot(tmp_path, looping, sound, {"type": "repetition", "n": 3}).outcome == "second"
    short = {"type": "length", "unit": "characters", "better": "lower"}
    assert ballot(tmp_path, "1234", "123456", short).outcome == "first"
    long = {**short, "better": "higher"}
    assert ballot(tmp_path, "1234", "123456", long).outcome == "second"


def test_what_cannot_be_scored_is_not_judged_and_named(tmp_path: Path, capsys) -> None:
    bare = PROMPT.model_copy(update={"reference": {}})
    cast = ballot(tmp_path, answer("SEV1", ""), answer("SEV2", ""), LABEL, prompt=bare)
    assert cast.outcome == "not_answered"
    assert cast.reasoning == (
        "no_reference: Label match: the prompt has no reference.severity to compare with"
    )
    assert "not judged: 'p': Label match: the prompt has no reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ({"type": "stop_rate"}, "stop_rate needs more than the answer's text"),
        ({"type": "length", "better": "lower"}, "length needs more than the answer's text"),
        ({"type": "length", "unit": "characters"}, "length does not say which answer is better"),
        ({"type": "distinct_n"}, "distinct_n does not say which answer is better"),
    ],
)
def test_a_metric_that_cannot_judge_is_refused_by_the_run_file(metric: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        MetricJudgeConfig.model_validate({"type": "metric", "metrics": [LABEL, metric]})
