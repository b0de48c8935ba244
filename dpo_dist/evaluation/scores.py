"""The content of scores.json: all metrics by decoding and arm, the differences of the arms, the
judge's win rates, and the outcome.

`n` always counts prompts. All intervals are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from dpo_dist.config import OWN_LABELS, Better, Sampling
from dpo_dist.evaluation.ranking import Ranking
from dpo_dist.evaluation.significance import Difference
from dpo_dist.evaluation.win_rate import WinRate
from dpo_dist.intervals import Estimate
from dpo_dist.storage.figures import Figures, is_none, read_figures

SCORES = "scores.json"  # in the evaluate phase's directory
HEADLINE = ("dpo", "sft")

OutcomeName = Literal["improved", "no_evidence", "regressed"]


@dataclass(frozen=True)
class ArmPair:
    """Arm `a` against arm `b`."""

    a: str
    b: str


@dataclass(frozen=True)
class ArmDifference(Difference, ArmPair):
    """The difference a - b; `p_holm` is `p` after Holm's adjustment over all pairs of arms and
    decodings of one metric."""

    p_holm: float | None = None


@dataclass(frozen=True)
class _AtDecoding:
    decoding: int


@dataclass(frozen=True, kw_only=True)
class ArmWinRate(WinRate, ArmPair, _AtDecoding):
    """a's win rate over b; `p_holm` is `p` after Holm's adjustment over all pairs of arms."""

    p_holm: float | None


class MetricRow(Figures):
    """A metric at one decoding.

    `unit` is "share" (from 0 to 1), "points", "kappa", or what is counted. `better` is the good
    direction; None: neither. `judged`: a judge gave the values. `differences` is None for label
    statistics, which have no test; `delta` is the difference dpo - sft. `missing` counts answers
    without a score, by arm and reason.
    """

    metric: str
    label: str
    unit: str
    better: Better | None
    judged: bool
    decoding: int
    arms: Mapping[str, Estimate]
    differences: tuple[ArmDifference, ...] | None = Field(None, exclude_if=is_none)
    delta: ArmDifference | Estimate | None
    missing: Mapping[str, Mapping[str, int]]

    def difference(self, a: str, b: str) -> ArmDifference | None:
        """The difference a - b; None if it was not tested."""
        return next((d for d in self.differences or () if (d.a, d.b) == (a, b)), None)


class Lengths(Figures):
    """The answers' lengths at the first decoding; `delta` is the difference dpo - sft."""

    unit: str
    arms: Mapping[str, Estimate]
    delta: Difference | None


class Outcome(Figures):
    """The outcome, its reasons as sentences, and the labels of the guarded metrics."""

    outcome: OutcomeName
    reasons: tuple[str, ...]
    guarded: tuple[str, ...]


class Comparisons(Figures):
    """The comparison of the arms. `preferred` is dpo's win rate over sft, also in `pairwise`; None
    if no judge compared them. `length` is None if the lengths are unknown. `arm_labels` are the
    names of the arms in tables."""

    decodings: tuple[Sampling, ...]
    arms: tuple[str, ...]
    arm_labels: Mapping[str, str] = OWN_LABELS
    metrics: tuple[MetricRow, ...]
    preferred: ArmWinRate | None
    pairwise: tuple[ArmWinRate, ...]
    length: Lengths | None
    ranking: Ranking | None

    def label(self, arm: str) -> str:
        """The arm's name in tables. Arms of other rounds (`round 1`) are policies of this run."""
        return self.arm_labels.get(arm, f"{OWN_LABELS['dpo']}, {arm}")


class Scores(Comparisons):
    """The comparison and its outcome."""

    outcome: Outcome


def read_scores(evaluate: Path) -> Scores:
    """The scores of a complete evaluate phase. Raises `DataError` if the file is damaged."""
    return read_figures(evaluate / SCORES, Scores)
