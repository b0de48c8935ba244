"""Finished runs side by side, and their answers to the same prompts against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dpo_dist.errors import UserError
from dpo_dist.evaluation.comparison import HEADLINE
from dpo_dist.evaluation.differences import paired_difference
from dpo_dist.evaluation.win_rate import worth
from dpo_dist.reporting.training import training_figures
from dpo_dist.runs.finished import FinishedRun, find_run
from dpo_dist.storage.artifacts import read_json, read_records
from dpo_dist.storage.records import Prompt, Score, Verdict

NAMES = ("run.name", "run.output_dir", "run.point")  # what a run is called


def compare_runs(given: Sequence[Path]) -> dict[str, Any]:
    """The figures of all runs, named A, B, ... in their order, what differs between them, and the
    paired differences of each from the first.

    Raises `DataError` for what is no finished run, and `UserError` for fewer than two of them.
    """
    if not 2 <= len(given) <= len(ascii_uppercase):
        raise UserError(f"compare takes 2 to {len(ascii_uppercase)} runs")
    runs = [find_run(path) for path in given]
    roots = Counter(run.root.resolve() for run in runs)
    if twice := [path for path, count in roots.items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice")
    names = list(ascii_uppercase[: len(runs)])
    first, *others = runs
    return {
        "runs": {name: str(run.root) for name, run in zip(names, runs, strict=True)},
        "settings": differing([_flat(run.config) for run in runs], NAMES),
        "evaluations": [_evaluation(run) for run in runs],
        "paired": [
            {"a": "A", "b": name, **_paired(first, other)}
            for name, other in zip(names[1:], others, strict=True)
        ],
        "training": [
            training_figures(run.folders["train"]) if "train" in run.folders else None
            for run in runs
        ],
        "judges": [_judges(run) for run in runs],
        "versions": differing([_versions(run) for run in runs]),
    }


def differing(
    values: Sequence[Mapping[str, Any]], ignored: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """The keys whose values are not the same everywhere; None stands for an absent one."""
    keys = dict.fromkeys(key for value in values for key in value if key not in ignored)
    rows = {key: [value.get(key) for value in values] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves of a nested value by their dotted keys."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {key: value}
    return {
        k: leaf
        for name, item in value.items()
        for k, leaf in _flat(item, f"{key}.{name}" if key else name).items()
    }


def _versions(run: FinishedRun) -> dict[str, Any]:
    return {**run.last["versions"], "revision": run.last["git"]}


def _judges(run: FinishedRun) -> dict[str, Any]:
    """Who labelled and who evaluated, and what it cost (None: nothing was counted)."""
    phases = (("labelling", "judge"), ("evaluating", "evaluate"))
    asked = {name: run.manifests.get(phase, {}) for name, phase in phases}
    asked |= {score["label"]: score for score in asked["evaluating"].get("judge_scores", [])}
    return {
        name: {"judge": found["judge"], "spend": found.get("spend")}
        for name, found in asked.items()
        if found.get("judge")
    }


def _evaluation(run: FinishedRun) -> dict[str, Any] | None:
    """The content of scores.json; every decoding has its limit of tokens filled in."""
    if "evaluate" not in run.folders:
        return None
    scores = read_json(run.folders["evaluate"] / "scores.json")
    limit = run.config["evaluate"]["max_new_tokens"]
    decodings = [{**d, "max_tokens": d.get("max_tokens") or limit} for d in scores["decodings"]]
    return {**scores, "decodings": decodings}


def _paired(a: FinishedRun, b: FinishedRun) -> dict[str, Any]:
    """dpo(A) - dpo(B) by prompt, or `why_not`. `left_out` names what is not the same measure."""
    ours, theirs = _evaluation(a), _evaluation(b)
    if reason := _why_not(a, b, ours, theirs):
        return {"why_not": reason, "rows": [], "left_out": []}
    assert ours is not None and theirs is not None
    values, other_values = _dpo_values(a), _dpo_values(b)
    rows, left_out = [], []
    for row in ours["metrics"]:
        decoding = ours["decodings"][row["decoding"]]
        if decoding not in theirs["decodings"]:
            continue
        number = theirs["decodings"].index(decoding)
        wanted = (row["metric"], row["label"], number)
        twin = next((other for other in theirs["metrics"] if _key(other) == wanted), None)
        if twin is None:
            continue
        if _measure(a, row) != _measure(b, twin):
            left_out.append(row["label"])
            continue
        difference = paired_difference(
            values.get((row["metric"], row["decoding"]), {}),
            other_values.get((twin["metric"], number), {}),
            a.last["seed"],
        )
        if difference.n:  # some figures have no value for a single prompt
            shown = {key: row[key] for key in ("label", "unit", "better", "decoding")}
            rows.append({**shown, **asdict(difference)})
    if preferred := _preferred(a, b, ours, theirs):
        rows.append(preferred)
    return {"why_not": None, "rows": rows, "left_out": sorted(set(left_out))}


def _why_not(
    a: FinishedRun, b: FinishedRun, ours: dict[str, Any] | None, theirs: dict[str, Any] | None
) -> str | None:
    """Why the answers of two runs cannot be paired."""
    if ours is None or theirs is None:
        return "one of them was not evaluated"
    if "dpo" not in ours["arms"] or "dpo" not in theirs["arms"]:
        return "one of them did not evaluate SFT+DPO"
    asked, others = _prompts(a), _prompts(b)
    if asked != others:
        shared = sum(others.get(name) == prompt for name, prompt in asked.items())
        return (
            f"they were evaluated on different prompts ({len(asked)} and {len(others)}, {shared} "
            "in common)"
        )
    if not any(decoding in theirs["decodings"] for decoding in ours["decodings"]):
        return "they share no decoding settings"
    return None


def _prompts(run: FinishedRun) -> dict[str, Prompt]:
    prompts = read_records(run.folders["evaluate"] / "prompts.jsonl", Prompt)
    return {prompt.id: prompt for prompt in prompts}


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["metric"], row["label"], row["decoding"]


def _dpo_values(run: FinishedRun) -> dict[tuple[str, int], dict[str, float]]:
    """By metric and decoding: the values of dpo's answers by prompt."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    for score in read_records(run.folders["evaluate"] / "scores.jsonl", Score):
        if score.arm == "dpo":
            key = (score.metric, score.decoding)
            values.setdefault(key, {})[score.prompt_id] = score.value
    return values


def _measure(run: FinishedRun, row: Mapping[str, Any]) -> Any:
    """What measured a row: the judge of its scores, or the metric's settings and files."""
    if row["judged"]:
        scored = run.manifests["evaluate"]["judge_scores"]
        return [score["judge"] for score in scored if score["label"] == row["label"]]
    metrics = [m for m in run.config["evaluate"]["metrics"] if m["label"] == row["label"]]
    files = run.inputs("evaluate")["metric_files"]
    # A file is known by its digest, wherever it lies.
    paths = [Path(value).name for metric in metrics for key, value in metric.items() if _path(key)]
    settings = [{k: v for k, v in metric.items() if not _path(k)} for metric in metrics]
    return settings, [files.get(name) for name in paths]


def _path(key: str) -> bool:
    return key.endswith("path")


def _preferred(
    a: FinishedRun, b: FinishedRun, ours: dict[str, Any], theirs: dict[str, Any]
) -> dict[str, Any] | None:
    """The difference of the two win rates over SFT, where the same judge gave both."""
    if ours["preferred"] is None or theirs["preferred"] is None:
        return None
    same = a.manifests["evaluate"]["judge"] == b.manifests["evaluate"]["judge"]
    if not same or ours["decodings"][0] != theirs["decodings"][0]:
        return None
    difference = paired_difference(_win_values(a), _win_values(b), a.last["seed"])
    return {
        "label": "Preferred over its SFT (judge)",
        "unit": "share",
        "better": "higher",
        "decoding": 0,
        **asdict(difference),
    }


def _win_values(run: FinishedRun) -> dict[str, float]:
    """What each verdict is worth to dpo against sft, by prompt; undecided ones are left out."""
    verdicts = read_records(run.folders["evaluate"] / "verdicts.jsonl", Verdict)
    return worth([v for v in verdicts if v.is_between(*HEADLINE)], "dpo")
