"""Answers that a metric cannot score cost nobody else a score."""

from __future__ import annotations

from pydantic import TypeAdapter

from dpo_dist.config import MetricConfig, Sampling
from dpo_dist.evaluation.comparison import summarise
from dpo_dist.evaluation.scoring import score_answers
from dpo_dist.metrics import Answer, Metric, build_metrics
from dpo_dist.storage.records import Generation, Message, Prompt

SECTION: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)
ARMS = ("sft", "dpo")
LABELS = ["low", "high", None, "low"]  # of the prompts; the third has none
GIVEN = {"sft": ["low", "low", "low", "high"], "dpo": ["low", "high", "low", ""]}


def prompts() -> dict[str, Prompt]:
    message = Message(role="user", content="q")
    return {
        f"p{n}": Prompt(id=f"p{n}", messages=(message,), reference={"severity": label})
        for n, label in enumerate(LABELS)
    }


def generations() -> list[Generation]:
    return [
        Generation(
            prompt_id=f"p{n}",
            arm=arm,
            decoding=0,
            text=f'{{"severity": "{label}"}}' if label else "no idea",
            token_ids=tuple(range(n + 2)),
            finish_reason="length" if n == 3 else "stop",
            engine="e",
        )
        for arm in ARMS
        for n, label in enumerate(GIVEN[arm])
    ]


def breaks_on(prompt: Prompt, answer: Answer) -> float:
    if "idea" in answer.text:
        raise ValueError("never heard of it")
    return 1.0


def metrics() -> list[Metric]:
    sections = [
        {"type": "label_match", "field": "severity", "order": ["low", "high"]},
        {"type": "length"},
        {"type": "stop_rate"},
        {"type": "rouge_l", "field": "summary"},
    ]
    built = build_metrics([SECTION.validate_python(section) for section in sections])
    return [*built, Metric("own", "Own", breaks_on)]


def test_every_answer_has_a_score_or_a_reason(capsys) -> None:
    scored = score_answers(metrics(), prompts(), generations())
    assert len(scored.scores) + len(scored.unscored) == 5 * len(ARMS) * len(LABELS)
    found = {(u.metric, u.arm, u.prompt_id): (u.reason, u.message) for u in scored.unscored}
    assert found["label_match:severity", "sft", "p2"] == (
        "no_reference",
        "Label match: the prompt has no reference.severity to compare with",
    )
    assert found["own", "dpo", "p3"] == ("failed", "Own: ValueError: never heard of it")
    assert sum(metric == "rouge_l:summary" for metric, _, _ in found) == 8
    assert len(found) == 8 + 2 + 1
    warnings = capsys.readouterr().err.strip().splitlines()
    assert len(warnings) == 3, "one for each metric"
    start = " warning: answers without a score: 1, such as the answer of arm `dpo` to 'p3': Own: "
    assert start in warnings[-1]


def test_the_summary_has_the_rest_and_says_what_is_missing() -> None:
    scored = score_answers(metrics(), prompts(), generations())
    summary = summarise(
        metrics(),
        scored.scores,
        None,
        ARMS,
        [Sampling(temperature=0.0)],
        seed=0,
        unscored=scored.unscored,
        labelled=scored.labelled,
    )
    rows = {row.metric: row for row in summary.metrics}
    assert list(rows) == [
        "label_match:severity",
        "label_match:severity/macro_f1",
        "label_match:severity/kappa",
        "length:tokens",
        "stop_rate",
        "rouge_l:summary",
        "own",
    ]

    def figures(metric: str) -> list[tuple[int, float | None]]:
        row = rows[metric]
        cells = [*(row.arms[arm] for arm in ARMS), row.delta]
        return [(cell.n, cell.mean) for cell in cells]

    assert figures("label_match:severity") == [(3, 1 / 3), (3, 2 / 3), (3, 1 / 3)]
    # sft: low 1 of 2 given and 1 of 2 wanted, high none; dpo: low 1 of 1 and 1 of 2, high 1 and 1.
    (_, sft), (_, dpo), (n, delta) = figures("label_match:severity/macro_f1")
    assert (n, sft, dpo) == (3, 1 / 4, (2 / 3 + 1) / 2) and abs(delta - (dpo - sft)) < 1e-12
    # sft answers high for low and low for high: observed 2/3, expected 4/9.
    assert [cell[0] for cell in figures("label_match:severity/kappa")] == [3, 2, 2]
    assert figures("length:tokens") == [(4, 3.5), (4, 3.5), (4, 0.0)]
    assert rows["length:tokens"].unit == "tokens" and rows["length:tokens"].better is None
    assert figures("stop_rate") == [(4, 0.75), (4, 0.75), (4, 0.0)]
    assert figures("rouge_l:summary") == [(0, None)] * 3, "n/a, not 0"
    assert figures("own") == [(4, 1.0), (3, 1.0), (3, 0.0)]
    assert {metric: row.missing for metric, row in rows.items() if row.missing} == {
        "label_match:severity": {"sft": {"no_reference": 1}, "dpo": {"no_reference": 1}},
        "label_match:severity/macro_f1": {"sft": {"no_reference": 1}, "dpo": {"no_reference": 1}},
        "label_match:severity/kappa": {
            "sft": {"no_reference": 1},
            "dpo": {"no_reference": 1, "no_label": 1},
        },
        "rouge_l:summary": {"sft": {"no_reference": 4}, "dpo": {"no_reference": 4}},
        "own": {"dpo": {"failed": 1}},
    }
