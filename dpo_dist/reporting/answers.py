"""On which prompts SFT+DPO lost, and what the judge said of its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.reporting.text import visible
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Prompt, Score, Verdict

ARMS = ("sft", "dpo")


@dataclass(frozen=True)
class Regression:
    """What a prompt has lost by DPO: the verdict, or metrics (by label, by how much).

    `harm` orders prompts: 1 for a lost verdict, and every fall as a share of the largest one of
    its metric, or of 1 for a share.
    """

    prompt_id: str
    lost: bool
    fell: dict[str, float]
    harm: float

    @property
    def figures(self) -> dict[str, Any]:
        return {"id": visible(self.prompt_id), "lost": self.lost, "fell": self.fell}


@dataclass(frozen=True)
class Answers:
    """Of the first decoding: the verdicts on sft and dpo by prompt, and the regressions, worst
    first."""

    verdicts: Mapping[str, Verdict]
    regressions: Sequence[Regression]


def guarded_rows(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows that the outcome guards, as far as one way is better."""
    guarded = scores["outcome"]["guarded"]
    return [
        row
        for row in scores["metrics"]
        if row["decoding"] == 0 and row["better"] and row["label"] in guarded
    ]


def read_answers(evaluate: Path, scores: Mapping[str, Any]) -> Answers:
    """The verdicts and regressions in the evaluate phase's records."""
    verdicts: dict[str, Verdict] = {}
    if (evaluate / "verdicts.jsonl").exists():
        found = read_records(evaluate / "verdicts.jsonl", Verdict)
        verdicts = {v.prompt_id: v for v in found if v.is_between(*ARMS)}
    falls = _falls(evaluate, guarded_rows(scores))
    prompts = (prompt.id for prompt in read_records(evaluate / "prompts.jsonl", Prompt))
    return Answers(verdicts, _ranked(verdicts, falls, prompts))


def _falls(evaluate: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By label and prompt, how much worse dpo's value is than sft's, where it is; in shares of 1
    or of the metric's largest fall."""
    by_key = {row["metric"]: row for row in rows}
    values: dict[str, dict[str, dict[str, float]]] = {key: {"sft": {}, "dpo": {}} for key in by_key}
    for score in read_records(evaluate / "scores.jsonl", Score):
        if score.decoding == 0 and score.metric in values and score.arm in ARMS:
            values[score.metric][score.arm][score.prompt_id] = score.value
    falls = {}
    for key, arms in values.items():
        sign = -1 if by_key[key]["better"] == "lower" else 1
        fell = {
            prompt: sign * (before - arms["dpo"][prompt])
            for prompt, before in arms["sft"].items()
            if prompt in arms["dpo"] and sign * (before - arms["dpo"][prompt]) > 0
        }
        unit = 1.0 if by_key[key]["unit"] == "share" else max(fell.values(), default=1.0)
        falls[by_key[key]["label"]] = {prompt: fall / unit for prompt, fall in fell.items()}
    return falls


def _ranked(
    verdicts: Mapping[str, Verdict],
    falls: Mapping[str, Mapping[str, float]],
    prompts: Iterable[str],
) -> list[Regression]:
    found = []
    for prompt in prompts:
        fell = {
            label: by_prompt[prompt] for label, by_prompt in falls.items() if prompt in by_prompt
        }
        verdict = verdicts.get(prompt)
        lost = verdict is not None and verdict.preferred == "sft"
        if lost or fell:
            found.append(Regression(prompt, lost, fell, lost + sum(fell.values())))
    return sorted(found, key=lambda regression: -regression.harm)
