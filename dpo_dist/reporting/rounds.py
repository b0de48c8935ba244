"""The rounds of iterative DPO: what went into each, and where it led."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_dist.reporting.cells import kl_cell, margin_cell, number_cell, optional_share
from dpo_dist.reporting.evaluation import evaluation_figures
from dpo_dist.reporting.funnel import funnel
from dpo_dist.reporting.tables import PREFERRED, Cell, Table
from dpo_dist.reporting.training import training_figures

HEADERS = (
    *("Round", "Prompts", "Pairs kept", "First loss", PREFERRED, "KL (nats per token)"),
    *("Validation accuracy", "Validation margin", "Cut off", "Wall time"),
)
NOTE = (
    "Every round starts from what the one before has trained. First loss: the first that was "
    "logged. KL: on the policy's own answers, ± its 95 % interval, from the reference that is "
    "named. KL, accuracy and margin are those of the step that became the round's model. Cut off: "
    "held-out answers of SFT+DPO at the first decoding. Wall time: of all phases of the round."
)


def round_figures(
    number: int, manifests: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """The figures of one round, from its directory."""
    return {
        "round": number,
        "prompts": manifests["sample"]["counts"]["kept"],
        "pairs": manifests["judge"]["counts"]["kept"],
        "training": training_figures(folder / "train"),
        "evaluation": evaluation_figures(folder / "evaluate"),
        "funnel": funnel(manifests),
        "taken_over": manifests["evaluate"].get("taken_over", 0),
        "wall_seconds": sum(manifest["wall_seconds"] for manifest in manifests.values()),
    }


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """A row per round, from `round_figures`."""
    rows = []
    for figures in rounds:
        training, evaluation = figures["training"], figures["evaluation"]
        kl = kl_cell(training)
        if training["kl"] is not None:
            kl = Cell(kl.value, f"{kl.detail} from {training['reference']}")
        cells = (
            Cell(str(figures["prompts"])),
            Cell(str(figures["pairs"])),
            number_cell(training["first_loss"], ".4f"),
            optional_share(evaluation["preferred"]),
            kl,
            optional_share(training["accuracy"]),
            margin_cell(training),
            optional_share(evaluation["cut_off"]),
            Cell(f"{figures['wall_seconds']:.0f} s"),
        )
        rows.append((str(figures["round"]), cells))
    return Table(HEADERS, tuple(rows))
