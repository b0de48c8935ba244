"""The figures of the rounds of iterative DPO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_dist.reporting.figures import (
    EvaluationFigures,
    FunnelStep,
    TrainingFigures,
    evaluation_figures,
    funnel,
    training_figures,
)
from dpo_dist.reporting.tables import (
    PREFERRED,
    Cell,
    Table,
    kl_cell,
    margin_cell,
    number_cell,
    share_cell,
)
from dpo_dist.runs.manifests import Manifests
from dpo_dist.storage.figures import Figures

NOTE = (
    "Every round starts from the model of the previous round. First loss: the first logged loss. "
    "KL: from the named reference, on the policy's own answers, ± its 95 % interval. KL, accuracy "
    "and margin are those of the selected step. Cut off: share of SFT+DPO's held-out answers at "
    "the first decoding. Wall time: total of the round's phases."
)


class RoundFigures(Figures):
    """The figures of a round, counted from 1. `prompts` and `pairs` are those that were kept;
    `taken_over` are the answers reused from an earlier evaluation."""

    round: int
    prompts: int
    pairs: int
    training: TrainingFigures
    evaluation: EvaluationFigures
    funnel: tuple[FunnelStep, ...]
    taken_over: int
    wall_seconds: float


def round_figures(number: int, manifests: Manifests, folder: Path) -> RoundFigures:
    """The figures of a complete round, from its directory and manifests."""
    sample, judge, evaluate = manifests.sample, manifests.judge, manifests.evaluate
    assert sample is not None and judge is not None and evaluate is not None
    return RoundFigures(
        round=number,
        prompts=sample.counts.kept,
        pairs=judge.counts.kept,
        training=training_figures(folder / "train"),
        evaluation=evaluation_figures(folder / "evaluate"),
        funnel=tuple(funnel(manifests)),
        taken_over=evaluate.taken_over or 0,
        wall_seconds=sum(manifest.wall_seconds for manifest in manifests),
    )


def rounds_table(rounds: Sequence[RoundFigures]) -> Table:
    """A table with a row per round."""
    rows = [(str(figures.round), _cells(figures)) for figures in rounds]
    headers = ("Round", *rows[0][1]) if rows else ()
    return Table(headers, tuple((number, tuple(cells.values())) for number, cells in rows))


def _cells(figures: RoundFigures) -> dict[str, Cell]:
    """The cells of a row by header."""
    training, evaluation = figures.training, figures.evaluation
    kl = kl_cell(training)
    if training.kl is not None:
        kl = Cell(kl.value, f"{kl.detail} from {training.reference}")
    return {
        "Prompts": Cell(str(figures.prompts)),
        "Pairs kept": Cell(str(figures.pairs)),
        "First loss": number_cell(training.first_loss, ".4f"),
        PREFERRED: share_cell(evaluation.preferred),
        "KL (nats per token)": kl,
        "Validation accuracy": share_cell(training.accuracy),
        "Validation margin": margin_cell(training),
        "Cut off": share_cell(evaluation.cut_off),
        "Wall time": Cell(f"{figures.wall_seconds:.0f} s"),
    }
