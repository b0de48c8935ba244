"""Builds report.json, report.md and report.html from a run's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.evaluation.ranking import Ranking
from dpo_dist.evaluation.scores import ArmWinRate, MetricRow, Scores, read_scores
from dpo_dist.judging.spend import Spend
from dpo_dist.reporting.answers import Answers, guarded_rows, read_answers
from dpo_dist.reporting.figures import (
    AlarmRow,
    alarms,
    cut_off_shares,
    funnel,
    training_figures,
)
from dpo_dist.reporting.gallery import Gallery, gallery
from dpo_dist.reporting.markdown import markdown
from dpo_dist.reporting.page import render_page
from dpo_dist.reporting.plots import round_plots, training_plots
from dpo_dist.reporting.reflection import reflect
from dpo_dist.reporting.report import FellCount, Regressions, ReportData, RunFigures
from dpo_dist.reporting.rounds import round_figures
from dpo_dist.reporting.tables import comparison_table, decoding_name, to_text
from dpo_dist.reporting.text import visible
from dpo_dist.runs.finished import WORK
from dpo_dist.runs.manifests import (
    EvaluateManifest,
    JudgeManifest,
    Manifests,
    read_manifest,
)
from dpo_dist.runs.run import ROUND_PHASES, Run, Step
from dpo_dist.storage.artifacts import FINGERPRINT, file_digest, write_text
from dpo_dist.storage.figures import write_figures
from dpo_dist.storage.manifest import Manifest
from dpo_dist.training.metrics_log import MetricLine, read_metrics

# The reason why a win rate has no interval, by its `note`.
NO_INTERVAL = {
    "one_prompt": "no interval, since there is only one prompt",
    "all_ties": "no interval, since all comparisons are ties",
    "all_inconsistent": "no interval, since the judge is inconsistent in all comparisons",
    "no_preference": "no interval, since no comparison has a preference",
}


@dataclass(frozen=True)
class ReportContents:
    """The content of the report: figures, plots as (title, SVG), and answers side by side."""

    figures: ReportData
    plots: list[tuple[str, str]]
    round_plots: list[tuple[str, str]]
    gallery: Gallery


def build(run: Run, out: Path, *, ranking: Ranking | None = None) -> ReportContents:
    """Read the run's phases and write the report's files to `out`. For a run with rounds, the
    report shows the last round and the figures of each round; `ranking` then ranks the arms of all
    rounds. Raises `DataError` for damaged files."""
    last = (run.rounds() or [run])[-1]
    evaluate = last.directory("evaluate")
    scores = read_scores(evaluate)
    answers = read_answers(evaluate, scores)
    metrics = read_metrics(last.directory("train") / "metrics.jsonl")
    measured = _measured(run, last, scores, answers, metrics)
    figures = ReportData(
        **dict(measured),
        reflection=tuple(reflect(measured)),
        ranking=ranking or scores.ranking,
    )
    config = run.config
    report = ReportContents(
        figures,
        training_plots(metrics, config.train.kl.budget if config.train else None),
        round_plots(figures.rounds),
        gallery(evaluate, answers, config.report),
    )
    write_text(out / "table.txt", to_text(comparison_table(scores)))
    if "json" in config.report.formats:
        write_figures(out / "report.json", figures)
    if "md" in config.report.formats:
        write_text(out / "report.md", markdown(figures))
    if "html" in config.report.formats:
        page = render_page(
            figures, plots=report.plots, round_plots=report.round_plots, gallery=report.gallery
        )
        write_text(out / "report.html", page)
    return report


def _measured(
    run: Run, last: Run, scores: Scores, answers: Answers, metrics: Sequence[MetricLine]
) -> RunFigures:
    """The figures from the phases' files; `last` is the run at its last round."""
    work = _complete(run)
    manifests = {name: read_manifest(folder) for name, folder in work.items()}
    shown = Manifests.read(
        last.directory(phase) if phase in ROUND_PHASES else run.directory(phase) for phase in WORK
    )
    judge, evaluate = shown.judge, shown.evaluate
    assert evaluate is not None, "the report needs an evaluation"
    return RunFigures(
        run=run.config.run.name,
        outcome=scores.outcome,
        summary=tuple(summary(scores)),
        comparison=scores,
        funnel=tuple(funnel(shown)),
        audit=judge.audit if judge else (),
        canaries=judge.canaries if judge else (),
        alarms=tuple(_alarms(run) or alarms(metrics)),
        rounds=tuple(
            round_figures(at.round, Manifests.read(map(at.directory, ROUND_PHASES)), at.folder)
            for at in run.rounds()
        ),
        training=training_figures(last.directory("train")) if shown.train else None,
        cut_off=cut_off_shares(last.directory("evaluate")),
        regressions=regressions(answers, scores, run.config.report.regressions),
        phases={name: manifest.wall_seconds for name, manifest in manifests.items()},
        judges={found.phase: found.judge for found in (judge, evaluate) if found is not None},
        spend=_spend(manifests) | {s.label: s.spend for s in evaluate.judge_scores if s.spend},
        judge_scores=evaluate.judge_scores,
        versions=evaluate.versions,
        git=evaluate.git,
        fingerprints={
            name: file_digest(folder / FINGERPRINT)
            for name, folder in work.items()
            if (folder / FINGERPRINT).exists()
        },
        config=run.config.model_dump(mode="json", exclude_none=True),
    )


def _complete(run: Run) -> dict[str, Path]:
    """The directories of the complete phases, by the names of their steps."""
    rounds = run.rounds()
    found = [(Step(p), run) for p in WORK if not rounds or p not in ROUND_PHASES]
    found += [(Step(p, at.round), at) for at in rounds for p in WORK if p in ROUND_PHASES]
    return {str(s): at.directory(s.phase) for s, at in found if at.is_complete(s.phase)}


def _alarms(run: Run) -> list[AlarmRow]:
    """The alarms of all rounds."""
    return [
        alarm
        for at in run.rounds()
        for alarm in alarms(read_metrics(at.directory("train") / "metrics.jsonl"), at.round)
    ]


def _spend(manifests: Mapping[str, Manifest]) -> dict[str, Spend]:
    return {
        name: manifest.spend
        for name, manifest in manifests.items()
        if isinstance(manifest, JudgeManifest | EvaluateManifest) and manifest.spend is not None
    }


def summary(scores: Scores) -> list[str]:
    """The outcome, the preference and the changes of the metrics, in sentences."""
    outcome = scores.outcome.outcome.replace("_", " ")
    sentences = [f"Outcome: {outcome} ({'; '.join(scores.outcome.reasons)})."]
    preferred = scores.preferred
    if preferred is not None and preferred.mean is not None:
        sentences.append(
            f"The judge prefers SFT+DPO to SFT in {100 * preferred.mean:.0f} % of {preferred.n} "
            f"comparisons ({decoding_name(scores.decodings[0])}; ties and inconsistent verdicts "
            f"count half): {_against_chance(preferred)}."
        )
    changes = (_change(row) for row in scores.metrics if row.decoding == 0)
    return [*sentences, *filter(None, changes)]


def _against_chance(rate: ArmWinRate) -> str:
    """What the interval of a win rate shows."""
    if rate.low is None or rate.high is None:
        return NO_INTERVAL[rate.note]
    if rate.low > 0.5:
        text = "better than chance at 95 % confidence"
        if rate.worst is not None and rate.worst <= 0.5:
            missing = sum(rate.missing.values())
            text += f", but not if all {missing} missing verdicts were losses"
        return text
    if rate.high < 0.5:
        return "worse than chance at 95 % confidence"
    return "not distinguishable from chance at this number of prompts"


def _change(row: MetricRow) -> str:
    """A metric's change from SFT to SFT+DPO in a sentence; empty without an interval."""
    delta = row.delta
    if delta is None or delta.mean is None or delta.low is None or delta.high is None:
        return ""
    change = f"{100 * delta.mean:+.1f}" if row.unit == "share" else f"{delta.mean:+.2f}"
    unit = {"share": " points", "kappa": ""}.get(row.unit, f" {row.unit}")
    if delta.low <= 0 <= delta.high:
        return (
            f"{row.label}: no difference from SFT shown ({change}{unit}, interval includes zero)."
        )
    direction = "rises" if delta.mean > 0 else "falls"
    verdict = ""
    if row.better == "lower":
        verdict = ", which is worse" if delta.mean > 0 else ", which is better"
    return f"{row.label} {direction} by {change.lstrip('+-')}{unit} over SFT{verdict}."


def regressions(answers: Answers, scores: Scores, most: int) -> Regressions:
    """The number of prompts on which each guarded metric fell, and the `most` worst prompts."""
    labels = [row.label for row in guarded_rows(scores) if row.delta and row.delta.n]
    fell = (
        FellCount(label=label, prompts=sum(label in r.fell for r in answers.regressions))
        for label in labels
    )
    worst = (row.model_copy(update={"id": visible(row.id)}) for row in answers.regressions[:most])
    return Regressions(fell=tuple(fell), worst=tuple(worst))
