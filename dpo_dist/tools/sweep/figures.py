"""The figures of a sweep: the content of sweep.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from dpo_dist.intervals import Estimate
from dpo_dist.reporting.figures import (
    EvaluationFigures,
    TrainingFigures,
    evaluation_figures,
    training_figures,
)
from dpo_dist.runs.run import SWEEP, Run
from dpo_dist.storage.artifacts import MANIFEST
from dpo_dist.storage.figures import Figures
from dpo_dist.storage.manifest import read_fingerprint

Measure = Literal["preferred", "accuracy"]


class SweepPoint(Figures):
    """A point: the values of the swept keys, the figures of its complete phases, and the path of
    its report relative to the sweep's report."""

    point: str
    settings: Mapping[str, JsonValue]
    training: TrainingFigures | None
    evaluation: EvaluationFigures | None
    report: str | None

    def measured(self, measure: Measure) -> Estimate | None:
        """The win rate over SFT, or the validation accuracy; None if it was not measured."""
        if measure == "preferred":
            return self.evaluation.preferred if self.evaluation else None
        return self.training.accuracy if self.training else None


class SweepFigures(Figures):
    """All points. `measure` compares them: the win rate or, without a judge, the validation
    accuracy. `tried_before` are complete points of earlier sweeps on the same data."""

    run: str
    swept: tuple[str, ...]
    measure: Measure
    evaluated: bool
    points: tuple[SweepPoint, ...]
    tried_before: tuple[str, ...]


class SweepReport(SweepFigures):
    """The figures and the conclusions in words. `frontier` has names of points."""

    frontier: tuple[str, ...]
    findings: tuple[str, ...]
    caveats: tuple[str, ...]


def sweep_point(run: Run, swept: Sequence[str]) -> SweepPoint:
    """The figures of the run's point. Raises `DataError` for damaged files."""
    assert run.point is not None
    train, evaluate = run.directory("train"), run.directory("evaluate")
    return SweepPoint(
        point=run.point,
        settings={key: _setting(run.config.dump(), key) for key in swept},
        training=training_figures(train) if run.is_complete("train") else None,
        evaluation=evaluation_figures(evaluate) if run.is_complete("evaluate") else None,
        report=f"../{run.point}/report/" if run.is_complete("report") else None,
    )


def tried_before(run: Run, own: Sequence[str]) -> list[str]:
    """The complete points of earlier sweeps, without this sweep's `own` points, evaluated on the
    same prompts (or, without an evaluation, on the same validation pairs)."""
    phase, data = ("evaluate", "prompts") if run.config.evaluate is not None else ("train", "pairs")
    complete = {
        path.parent.parent.name: read_fingerprint(path.parent).inputs.get(data)
        for path in sorted((run.root / SWEEP).glob(f"*/{phase}/{MANIFEST}"))
    }
    own_data = [complete[name] for name in own if name in complete]
    return [name for name, used in complete.items() if name not in own and used in own_data]


def _setting(values: JsonValue, key: str) -> JsonValue:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
