"""The figures of several finished runs, and the paired differences of their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from pydantic import JsonValue

from dpo_dist.config import Better, required
from dpo_dist.errors import UserError
from dpo_dist.evaluation.scores import HEADLINE, MetricRow, Scores, read_scores
from dpo_dist.evaluation.significance import Difference, paired_difference
from dpo_dist.evaluation.win_rate import worth
from dpo_dist.judging.spend import Spend
from dpo_dist.reporting.figures import TrainingFigures, training_figures
from dpo_dist.runs.finished import FinishedRun, find_run
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.figures import Figures
from dpo_dist.storage.records import Prompt, Score, Verdict

NAMES = ("run.name", "run.output_dir")  # always differ


@dataclass(frozen=True)
class _Measure:
    label: str
    unit: str
    better: Better | None
    decoding: int


@dataclass(frozen=True)
class PairedRow(Difference, _Measure):
    """The difference between two runs' SFT+DPO models in one measure, paired by prompt."""


class PairedRuns(Figures):
    """dpo(a) - dpo(b) by prompt, or `why_not`. The runs measured the metrics in `left_out`
    differently."""

    a: str
    b: str
    why_not: str | None
    rows: tuple[PairedRow, ...] = ()
    left_out: tuple[str, ...] = ()


class JudgeCost(Figures):
    """The identity of a judge and its cost; None: nothing was counted."""

    judge: str
    spend: Spend | None


class RunComparison(Figures):
    """The paths of the runs A, B, ..., and in this order, per run: settings and versions that
    differ (None: absent), figures, and judges by task. `paired` compares the others with A."""

    runs: Mapping[str, str]
    settings: Mapping[str, tuple[JsonValue, ...]]
    evaluations: tuple[Scores | None, ...]
    paired: tuple[PairedRuns, ...]
    training: tuple[TrainingFigures | None, ...]
    judges: tuple[Mapping[str, JudgeCost], ...]
    versions: Mapping[str, tuple[JsonValue, ...]]


def compare_runs(given: Sequence[Path]) -> RunComparison:
    """The figures of all runs, and the paired differences of the first from each other run.

    Raises `DataError` for a path that is not a finished run, `UserError` for fewer than two runs.
    """
    if not 2 <= len(given) <= len(ascii_uppercase):
        raise UserError(f"compare takes 2 to {len(ascii_uppercase)} runs")
    runs = [find_run(path) for path in given]
    roots = Counter(run.root.resolve() for run in runs)
    if repeated := [path for path, count in roots.items() if count > 1]:
        raise UserError(f"{repeated[0]} is given twice")
    named = dict(zip(ascii_uppercase, runs, strict=False))
    return RunComparison(
        runs={name: str(run.root) for name, run in named.items()},
        settings=differing([_flat(run.config.dump()) for run in runs], NAMES),
        evaluations=tuple(_evaluation(run) for run in runs),
        paired=tuple(_paired(runs[0], run, name) for name, run in [*named.items()][1:]),
        training=tuple(
            training_figures(run.folders["train"]) if run.manifests.train else None for run in runs
        ),
        judges=tuple(_judges(run) for run in runs),
        versions=differing([{**run.last.versions, "revision": run.last.git} for run in runs]),
    )


def differing(
    values: Sequence[Mapping[str, JsonValue]], ignored: Sequence[str] = ()
) -> dict[str, tuple[JsonValue, ...]]:
    """The keys whose values differ; None: absent."""
    keys = dict.fromkeys(key for value in values for key in value if key not in ignored)
    rows = {key: tuple(value.get(key) for value in values) for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _flat(value: JsonValue, key: str = "") -> dict[str, JsonValue]:
    """The leaves of a nested value by dotted keys."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {key: value}
    return {
        k: leaf
        for name, item in value.items()
        for k, leaf in _flat(item, f"{key}.{name}" if key else name).items()
    }


def _judges(run: FinishedRun) -> dict[str, JudgeCost]:
    judges = {}
    judge, evaluate = run.manifests.judge, run.manifests.evaluate
    if judge is not None:
        judges["labelling"] = JudgeCost(judge=judge.judge, spend=judge.spend)
    if evaluate is not None:
        if evaluate.judge:
            judges["evaluating"] = JudgeCost(judge=evaluate.judge, spend=evaluate.spend)
        for scorer in evaluate.judge_scores:
            judges[scorer.label] = JudgeCost(judge=scorer.judge, spend=scorer.spend)
    return judges


def _evaluation(run: FinishedRun) -> Scores | None:
    """The scores, with `max_tokens` filled in for every decoding."""
    if run.manifests.evaluate is None:
        return None
    scores = read_scores(run.folders["evaluate"])
    limit = required(run.config.evaluate).max_new_tokens
    decodings = tuple(
        decoding.model_copy(update={"max_tokens": decoding.max_tokens or limit})
        for decoding in scores.decodings
    )
    return scores.model_copy(update={"decodings": decodings})


def _paired(a: FinishedRun, b: FinishedRun, name: str) -> PairedRuns:
    """The differences of the first run from the run `name`."""
    ours, theirs = _evaluation(a), _evaluation(b)
    if ours is None or theirs is None:
        return PairedRuns(a="A", b=name, why_not="one of them was not evaluated")
    if reason := _why_not(a, b, ours, theirs):
        return PairedRuns(a="A", b=name, why_not=reason)
    our_values, their_values = _dpo_values(a), _dpo_values(b)
    rows, left_out = [], set()
    for row in ours.metrics:
        wanted = (row.metric, row.label, ours.decodings[row.decoding])
        same = (
            o for o in theirs.metrics if (o.metric, o.label, theirs.decodings[o.decoding]) == wanted
        )
        if (other := next(same, None)) is None:
            continue
        if _measured_by(a, row) != _measured_by(b, other):
            left_out.add(row.label)
            continue
        difference = paired_difference(
            our_values.get((row.metric, row.decoding), {}),
            their_values.get((other.metric, other.decoding), {}),
            a.last.seed,
        )
        if difference.n:  # some metrics have no values per prompt
            rows.append(
                PairedRow(row.label, row.unit, row.better, row.decoding, **vars(difference))
            )
    rows += _preferred(a, b, ours, theirs)
    return PairedRuns(
        a="A", b=name, why_not=None, rows=tuple(rows), left_out=tuple(sorted(left_out))
    )


def _why_not(a: FinishedRun, b: FinishedRun, ours: Scores, theirs: Scores) -> str | None:
    """Why the answers of two runs cannot be paired; None: they can."""
    if "dpo" not in ours.arms or "dpo" not in theirs.arms:
        return "one of them did not evaluate SFT+DPO"
    ours_asked, theirs_asked = _prompts(a), _prompts(b)
    if ours_asked != theirs_asked:
        shared = sum(theirs_asked.get(id_) == prompt for id_, prompt in ours_asked.items())
        counts = f"{len(ours_asked)} and {len(theirs_asked)}, {shared} in common"
        return f"they were evaluated on different prompts ({counts})"
    if not any(decoding in theirs.decodings for decoding in ours.decodings):
        return "they share no decoding settings"
    return None


def _prompts(run: FinishedRun) -> dict[str, Prompt]:
    prompts = read_records(run.folders["evaluate"] / "prompts.jsonl", Prompt)
    return {prompt.id: prompt for prompt in prompts}


def _dpo_values(run: FinishedRun) -> dict[tuple[str, int], dict[str, float]]:
    """The values of dpo's answers by prompt, by metric and decoding."""
    values: dict[tuple[str, int], dict[str, float]] = {}
    for score in read_records(run.folders["evaluate"] / "scores.jsonl", Score):
        if score.arm == "dpo":
            key = (score.metric, score.decoding)
            values.setdefault(key, {})[score.prompt_id] = score.value
    return values


def _measured_by(run: FinishedRun, row: MetricRow) -> object:
    """What measured a metric: the judge's identity, or the metric's settings and files."""
    evaluate = required(run.config.evaluate)
    if row.judged:
        assert run.manifests.evaluate is not None
        return [s.judge for s in run.manifests.evaluate.judge_scores if s.label == row.label]
    metrics = [metric for metric in evaluate.metrics if metric.label == row.label]
    digests = run.inputs("evaluate").get("metric_files")
    assert isinstance(digests, dict)
    # A file is identified by its digest, not by its path; nothing is imported.
    fields = [field for metric in metrics for field in metric]
    settings = [(name, value) for name, value in fields if not isinstance(value, Path)]
    return settings, [digests.get(path.name) for _, path in fields if isinstance(path, Path)]


def _preferred(a: FinishedRun, b: FinishedRun, ours: Scores, theirs: Scores) -> list[PairedRow]:
    """The difference of the win rates over SFT, if the same judge made both comparisons."""
    if ours.preferred is None or theirs.preferred is None:
        return []
    judges = [run.manifests.evaluate and run.manifests.evaluate.judge for run in (a, b)]
    if judges[0] != judges[1] or ours.decodings[0] != theirs.decodings[0]:
        return []
    difference = paired_difference(_win_values(a), _win_values(b), a.last.seed)
    label = "Preferred over its SFT (judge)"
    return [PairedRow(label, "share", "higher", 0, **vars(difference))]


def _win_values(run: FinishedRun) -> dict[str, float]:
    """The value of each verdict for dpo against sft by prompt, without undecided verdicts."""
    verdicts = read_records(run.folders["evaluate"] / "verdicts.jsonl", Verdict)
    return worth([v for v in verdicts if v.is_between(*HEADLINE)], "dpo")
