"""The verdicts on SFT+DPO's answers, and the prompts on which they are worse than SFT's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.evaluation.scores import MetricRow, Scores
from dpo_dist.reporting.report import RegressionRow
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Prompt, Score, Verdict

ARMS = ("sft", "dpo")


@dataclass(frozen=True)
class Answers:
    """The verdicts on sft and dpo by prompt, and the regressions, worst first; both at the first
    decoding."""

    verdicts: Mapping[str, Verdict]
    regressions: Sequence[RegressionRow]


def guarded_rows(scores: Scores) -> list[MetricRow]:
    """The rows of the guarded metrics that have a better direction, at the first decoding."""
    guarded = scores.outcome.guarded
    return [r for r in scores.metrics if r.decoding == 0 and r.better and r.label in guarded]


def read_answers(evaluate: Path, scores: Scores) -> Answers:
    """Read the verdicts and regressions from the evaluate phase's directory."""
    verdicts: dict[str, Verdict] = {}
    if (evaluate / "verdicts.jsonl").exists():
        found = read_records(evaluate / "verdicts.jsonl", Verdict)
        verdicts = {v.prompt_id: v for v in found if v.is_between(*ARMS)}
    falls = _falls(evaluate, guarded_rows(scores))
    regressions = []
    for prompt in read_records(evaluate / "prompts.jsonl", Prompt):
        fell = {label: by_id[prompt.id] for label, by_id in falls.items() if prompt.id in by_id}
        verdict = verdicts.get(prompt.id)
        lost = verdict is not None and verdict.preferred == "sft"
        if lost or fell:
            regressions.append(RegressionRow(id=prompt.id, lost=lost, fell=fell))
    return Answers(verdicts, sorted(regressions, key=lambda row: row.harm, reverse=True))


def _falls(evaluate: Path, rows: Sequence[MetricRow]) -> dict[str, dict[str, float]]:
    """The falls by label and prompt: how much worse dpo is than sft. A fall is relative to
    the largest fall of its metric, except for shares."""
    keys = {row.metric for row in rows}
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for score in read_records(evaluate / "scores.jsonl", Score):
        if score.decoding == 0 and score.metric in keys and score.arm in ARMS:
            values[score.arm, score.metric][score.prompt_id] = score.value
    falls = {}
    for row in rows:
        sign = -1 if row.better == "lower" else 1
        sft, dpo = (values[arm, row.metric] for arm in ARMS)
        fell = {
            prompt: fall
            for prompt, value in sft.items()
            if prompt in dpo and (fall := sign * (value - dpo[prompt])) > 0
        }
        unit = 1.0 if row.unit == "share" else max(fell.values(), default=1.0)
        falls[row.label] = {prompt: fall / unit for prompt, fall in fell.items()}
    return falls
