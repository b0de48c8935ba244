"""The answers of the arms in figures: how long they are, and on which prompts SFT+DPO lost.

Texts are read one at a time and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import read_records
from dpo_dist.records import Generation, Score, Verdict
from dpo_dist.reporting.text import visible

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


@dataclass
class Answers:
    """Of the first decoding: lengths in characters and cut-off answers by arm, verdicts and
    regressions (worst first) by prompt."""

    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    cut_off: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    regressions: list[Regression] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Mean length and share of cut-off answers by arm, and by how much dpo's are longer than
        sft's on the same prompts, with a 95 % t interval."""
        arms = {
            arm: {
                "n": len(lengths),
                "characters": sum(lengths.values()) / len(lengths),
                "cut_off": self.cut_off.get(arm, 0) / len(lengths),
            }
            for arm, lengths in self.lengths.items()
        }
        return {"decoding": 0, "arms": arms, "longer": self._longer()}

    def _longer(self) -> dict[str, Any] | None:
        if not set(ARMS) <= self.lengths.keys():
            return None
        sft, dpo = (self.lengths[arm] for arm in ARMS)
        differences = [dpo[prompt] - sft[prompt] for prompt in sft if prompt in dpo]
        return _mean(differences) if differences else None


def _mean(values: Sequence[float]) -> dict[str, Any]:
    n, mean = len(values), sum(values) / len(values)
    if n < 2 or min(values) == max(values):
        return {"n": n, "mean": mean, "low": None, "high": None}
    from scipy.stats import t

    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    reach = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return {"n": n, "mean": mean, "low": mean - reach, "high": mean + reach}


def guarded_rows(scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows with a better direction that the outcome guards, or, in evaluations from before
    there was one, all that no judge gives."""
    rows = [row for row in scores["metrics"] if row["decoding"] == 0]
    rows = [row for row in rows if row.get("better", "higher")]  # not in older evaluations
    if outcome := scores.get("outcome"):
        return [row for row in rows if row["label"] in outcome["guarded"]]
    return [row for row in rows if not row.get("judged")]


def read_answers(evaluate: Path, scores: Mapping[str, Any]) -> Answers:
    """The figures of the evaluate phase's records."""
    answers = Answers()
    for answer in read_records(evaluate / "generations.jsonl", Generation):
        if answer.decoding == 0:
            answers.lengths.setdefault(answer.arm, {})[answer.prompt_id] = len(answer.text)
            cut_off = answer.finish_reason == "length"
            answers.cut_off[answer.arm] = answers.cut_off.get(answer.arm, 0) + cut_off
    if (evaluate / "verdicts.jsonl").exists():
        verdicts = read_records(evaluate / "verdicts.jsonl", Verdict)
        answers.verdicts = {v.prompt_id: v for v in verdicts if v.is_between(*ARMS)}
    falls = _falls(evaluate, guarded_rows(scores))
    answers.regressions = _ranked(answers.verdicts, falls, answers.lengths.get("dpo", {}))
    return answers


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
        sign = -1 if by_key[key].get("better", "higher") == "lower" else 1
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
    prompts: Mapping[str, int],
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
