"""The metrics of the evaluate phase, from the run file to scores.json, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Generation, Score, Unscored
from tests.conftest import ROOT

PROMPTS = 5
OWN = """
def breaks(prompt, answer):
    if prompt.id == "e1":
        raise LookupError("no such incident")
    return len(prompt.reference) / 4
"""
METRICS = [
    {"type": "json_schema"},
    {"type": "label_match", "field": "severity", "order": ["low", "high"]},
    {"type": "faithful_quotes", "field": "evidence"},
    {"type": "regex", "pattern": ".", "match": "search"},
    {"type": "exact_match", "field": "text"},
    {"type": "rouge_l", "field": "text"},
    {"type": "length"},
    {"type": "length", "unit": "characters"},
    {"type": "stop_rate"},
    {"type": "distinct_n", "n": 1},
    {"type": "repetition"},
    {"type": "refusal_rate"},
    {"type": "function", "path": "metrics_of_the_test:breaks", "label": "Own"},
]


@pytest.fixture
def evaluate(tmp_path: Path, tiny_model: Path, write_run, write_jsonl, monkeypatch):
    """Run the phase on a list of metrics and return its exit code."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "metrics_of_the_test.py").write_text(OWN)
    references = [
        {"severity": "low", "text": "a b"} if n != 2 else {"text": "c"} for n in range(PROMPTS)
    ]
    rows = [
        {"id": f"e{n}", "prompt": f"question {n}", "reference": reference}
        for n, reference in enumerate(references)
    ]
    write_jsonl(tmp_path / "held_out.jsonl", rows)
    schema = str(ROOT / "recipes" / "incident_triage" / "answer.schema.json")

    def run(metrics: list[dict], **more: object) -> int:
        sections = [
            {**metric, "schema_path": schema} if metric["type"] == "json_schema" else metric
            for metric in metrics
        ]
        path = write_run(
            model={"base": str(tiny_model), "dtype": "float32"},
            preferences={"source": "path", "path": "held_out.jsonl"},
            evaluate={
                "prompts": {"path": "held_out.jsonl"},
                "engine": {"type": "hf", "max_model_len": 256},
                "arms": ["base", "sft"],
                "max_new_tokens": 12,
                "metrics": sections,
                **more,
            },
        )
        return main(["evaluate", str(path)])

    return run


def test_all_metrics_of_all_answers_and_what_has_none(evaluate, tmp_path: Path, capsys) -> None:
    assert evaluate(METRICS) == 0
    out = tmp_path / "runs" / "test" / "evaluate"
    scores = list(read_records(out / "scores.jsonl", Score))
    unscored = list(read_records(out / "unscored.jsonl", Unscored))
    assert len(scores) + len(unscored) == len(METRICS) * 2 * PROMPTS
    rows = {row["label"]: row for row in json.loads((out / "scores.json").read_text())["metrics"]}
    assert len(rows) == len(METRICS) + 2, "macro-F1 and kappa stand beside the label match"
    for arm in ("base", "sft"):
        assert rows["Own"]["arms"][arm]["n"] == PROMPTS - 1
        assert rows["Own"]["arms"][arm]["mean"] == pytest.approx((3 * 0.5 + 0.25) / 4)
        assert rows["Own"]["missing"][arm] == {"failed": 1}
        assert rows["Label match"]["arms"][arm]["n"] == PROMPTS - 1
        assert rows["Label match"]["missing"][arm] == {"no_reference": 1}
        assert rows["Label match, macro-F1"]["arms"][arm]["mean"] == 0.0
        kappa = rows["Label match, quadratic-weighted kappa"]
        assert kappa["arms"][arm] == {"n": 0, "mean": None, "low": None, "high": None}
        assert kappa["missing"][arm] == {"no_reference": 1, "no_label": PROMPTS - 1}
    answers = [g for g in read_records(out / "generations.jsonl", Generation) if g.arm == "base"]
    cells = {label: rows[label]["arms"]["base"]["mean"] for label in rows}
    mean = pytest.approx
    assert cells["Length (tokens)"] == mean(sum(len(a.token_ids) for a in answers) / PROMPTS)
    assert cells["Length (characters)"] == mean(sum(len(a.text) for a in answers) / PROMPTS)
    stopped = sum(answer.finish_reason == "stop" for answer in answers)
    assert cells["Stop rate"] == stopped / PROMPTS
    said = capsys.readouterr().err
    assert "such as the answer of arm `base` to 'e1': Own: LookupError: no such incident" in said


@pytest.mark.parametrize("as_judge", [False, True])
def test_a_reference_that_no_prompt_has_is_found_before_anything_is_generated(
    evaluate, tmp_path: Path, capsys, as_judge: bool
) -> None:
    metric = {"type": "label_match", "field": "team"}
    code = (
        evaluate([{"type": "stop_rate"}], judge={"type": "metric", "metrics": [metric]})
        if as_judge
        else evaluate([metric])
    )
    assert code == 2
    assert "compares with reference.team, which none of 5 prompts has" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "test" / "evaluate" / "generations.journal.jsonl").exists()


def test_a_function_that_is_not_there_is_found_before_anything_is_generated(
    evaluate, tmp_path: Path, capsys
) -> None:
    assert evaluate([{"type": "function", "path": "metrics_of_the_test:missing"}]) == 2
    assert "has no attribute 'missing'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "test" / "evaluate" / "generations.journal.jsonl").exists()
