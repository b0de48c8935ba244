"""The content of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from dpo_dist.evaluation.ranking import Ranking
from dpo_dist.evaluation.scores import Outcome, Scores
from dpo_dist.intervals import Estimate
from dpo_dist.judging.audit import AuditShare
from dpo_dist.judging.canaries import CanaryRow
from dpo_dist.judging.spend import Spend
from dpo_dist.reporting.figures import AlarmRow, FunnelStep, TrainingFigures
from dpo_dist.reporting.rounds import RoundFigures
from dpo_dist.runs.manifests import ScorerSpend
from dpo_dist.storage.figures import Figures


class FellCount(Figures):
    """The number of prompts on which a metric fell."""

    label: str
    prompts: int


class RegressionRow(Figures):
    """A prompt whose verdict is lost or whose metrics fell by DPO. `fell` has the falls by label,
    relative to the largest fall of the metric except for shares."""

    id: str
    lost: bool
    fell: Mapping[str, float]

    @property
    def harm(self) -> float:
        """Ranks prompts: 1 for a lost verdict, plus all falls."""
        return self.lost + sum(self.fell.values())


class Regressions(Figures):
    """The number of prompts on which each guarded metric fell, and the worst prompts in order."""

    fell: tuple[FellCount, ...]
    worst: tuple[RegressionRow, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence of the reflection. `figures` are the dotted places in report.json of the figures
    behind it; the report highlights a `warning`."""

    topic: str
    text: str
    figures: tuple[str, ...]
    warning: bool = False

    def __post_init__(self) -> None:
        assert self.figures, "no sentence without its figure"


class RunFigures(Figures):
    """All measured figures. `phases` are wall times in seconds and `judges` are identities, both by
    phase; `spend` is by phase or label of a judge score, `fingerprints` are SHA-256 digests by
    phase, and `config` is the run file with all defaults."""

    run: str
    outcome: Outcome
    summary: tuple[str, ...]
    comparison: Scores
    funnel: tuple[FunnelStep, ...]
    audit: tuple[AuditShare, ...]
    canaries: tuple[CanaryRow, ...]
    alarms: tuple[AlarmRow, ...]
    rounds: tuple[RoundFigures, ...]
    training: TrainingFigures | None
    cut_off: Mapping[str, Estimate]
    regressions: Regressions
    phases: Mapping[str, float]
    judges: Mapping[str, str | None]
    spend: Mapping[str, Spend]
    judge_scores: tuple[ScorerSpend, ...]
    versions: Mapping[str, str]
    git: str | None
    fingerprints: Mapping[str, str]
    config: Mapping[str, JsonValue]

    @property
    def same_judge(self) -> bool:
        """Whether the judge of the evaluation also labelled the training pairs."""
        labelling = self.judges.get("judge")
        return labelling is not None and labelling == self.judges.get("evaluate")


class ReportData(RunFigures):
    """The figures, the reflection, and the strengths of all arms."""

    reflection: tuple[Sentence, ...]
    ranking: Ranking | None


def look_up(values: JsonValue, name: str) -> JsonValue:
    """The figure at a dotted place, such as `comparison.metrics.0.delta`. Raises `KeyError` or
    `IndexError` if it does not exist."""
    for part in name.split("."):
        if isinstance(values, list):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values[part]
        else:
            raise KeyError(name)
    return values
