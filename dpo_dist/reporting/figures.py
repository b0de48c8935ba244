"""Figures of single phases, read from their directories: of a training, of an evaluation, and the
counts of the preference data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from dpo_dist.config import Sampling, required
from dpo_dist.evaluation.scores import ArmWinRate, Lengths, read_scores
from dpo_dist.intervals import Estimate, wilson
from dpo_dist.reporting.text import visible
from dpo_dist.runs.manifests import Manifests, PairCounts, TrainManifest, config_of
from dpo_dist.storage.artifacts import MANIFEST, read_records
from dpo_dist.storage.figures import Figures, is_none, read_figures
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Generation
from dpo_dist.training.metrics_log import MetricLine, read_metrics


class AlarmRow(Figures):
    """An alarm during training. `round` counts from 1; it is None in a run without rounds."""

    round: int | None = Field(None, exclude_if=is_none)
    step: int
    kind: str
    message: str

    @property
    def moment(self) -> str:
        """`Step 10`, or `Round 2, step 10`."""
        step = f"step {self.step}"
        return step.capitalize() if self.round is None else f"Round {self.round}, {step}"


class MarginChange(Figures):
    """The reward gap on validation pairs, at the first and at the last validation."""

    first: float
    last: float


class KlEstimate(Figures):
    """The KL from the reference on `answers` of the policy, in nats per token. `se` is its standard
    error (None for a single answer), `cut_off` the share of answers that reached the token
    limit."""

    step: int
    per_token: float
    se: float | None
    answers: int
    cut_off: float


class TrainingFigures(Figures):
    """The figures of a finished training at the selected step. A figure is the last one logged up
    to that step, `first_loss` the first of the training; None if none was logged. The interval of
    `accuracy` uses the number of prompts, since the pairs of a prompt are not independent."""

    steps: int
    selected_step: int
    pairs: PairCounts
    beta: float
    kl_budget: float | None
    reference: str
    first_loss: float | None
    loss: float | None
    validation_loss: float | None
    accuracy: Estimate | None
    margin: MarginChange | None
    kl: KlEstimate | None
    alarms: tuple[str, ...]
    wall_seconds: float
    peak_rss_bytes: int
    peak_device_bytes: int | None = Field(None, exclude_if=is_none)


class EvaluationFigures(Figures):
    """Figures of SFT+DPO at the first decoding: the win rate over SFT (None without a judge), the
    length, and the share of cut-off answers."""

    decoding: Sampling
    preferred: ArmWinRate | None
    length: Lengths | None
    cut_off: Estimate | None


class _Phase(Figures):
    phase: str
    unit: str


class FunnelStep(Counts, _Phase):
    """The counts of preference data in a phase, in `unit`."""


def training_figures(train: Path) -> TrainingFigures:
    """The figures of a complete train phase. Raises `DataError` for damaged files."""
    manifest = read_figures(train / MANIFEST, TrainManifest)
    settings = required(config_of(manifest).train)
    lines = read_metrics(train / "metrics.jsonl")
    lines = [line for line in lines if line.step <= manifest.selected_step]
    margins = _logged(lines, "eval_rewards/margins")
    accuracy = _last(lines, "eval_rewards/accuracies")
    return TrainingFigures(
        steps=manifest.steps,
        selected_step=manifest.selected_step,
        pairs=manifest.pairs,
        beta=settings.beta,
        kl_budget=settings.kl.budget,
        reference=manifest.reference,
        first_loss=next(iter(_logged(lines, "loss")), None),
        loss=_last(lines, "loss"),
        validation_loss=_last(lines, "eval_loss"),
        accuracy=None if accuracy is None else _accuracy(accuracy, train),
        margin=MarginChange(first=margins[0], last=margins[-1]) if margins else None,
        kl=_kl(lines),
        alarms=tuple(line.alarm for line in lines if line.alarm),
        wall_seconds=manifest.wall_seconds,
        peak_rss_bytes=manifest.peak_rss_bytes,
        peak_device_bytes=manifest.peak_device_bytes,
    )


def alarms(metrics: Iterable[MetricLine], number: int | None = None) -> list[AlarmRow]:
    """The alarms of a training; `number` is its round."""
    return [
        AlarmRow(
            round=number,
            step=line.step,
            kind=visible(line.alarm.replace("_", " ")),
            message=visible(line.message),
        )
        for line in metrics
        if line.alarm
    ]


def _kl(lines: Sequence[MetricLine]) -> KlEstimate | None:
    for line in reversed(lines):
        values = line.values
        if "kl/per_token" in values:
            return KlEstimate(
                step=line.step,
                per_token=values["kl/per_token"],
                se=values.get("kl/per_token_se"),
                answers=int(values["kl/sequences"]),
                cut_off=values["kl/cut_off"],
            )
    return None


def _accuracy(share: float, train: Path) -> Estimate:
    """The accuracy, with the interval for the number of prompts."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(train / "tokens" / "validation.parquet", columns=["id"])
    prompts = len(set(rows["id"].to_pylist()))
    interval = wilson(round(share * prompts), prompts)
    return Estimate(prompts, share, interval.low, interval.high)


def _logged(lines: Iterable[MetricLine], key: str) -> list[float]:
    return [line.values[key] for line in lines if key in line.values]


def _last(lines: Iterable[MetricLine], key: str) -> float | None:
    return next(reversed(_logged(lines, key)), None)


def evaluation_figures(evaluate: Path) -> EvaluationFigures:
    """The figures of a complete evaluate phase."""
    scores = read_scores(evaluate)
    return EvaluationFigures(
        decoding=scores.decodings[0],
        preferred=scores.preferred,
        length=scores.length,
        cut_off=cut_off_shares(evaluate).get("dpo"),
    )


def cut_off_shares(evaluate: Path) -> dict[str, Estimate]:
    """The share of cut-off answers at the first decoding, by arm."""
    answers: Counter[str] = Counter()
    cut_off: Counter[str] = Counter()
    for answer in read_records(evaluate / "generations.jsonl", Generation):
        if answer.decoding == 0:
            answers[answer.arm] += 1
            cut_off[answer.arm] += answer.finish_reason == "length"
    return {arm: wilson(cut_off[arm], n) for arm, n in answers.items()}


def funnel(manifests: Manifests) -> list[FunnelStep]:
    """The counts of the preference data, by phase."""
    units = {"sample": "prompts", "judge": "comparisons", "train": "pairs"}
    steps = []
    for manifest in manifests:
        if unit := units.get(manifest.phase):
            counts = dict(manifest.counts)
            counts["dropped"] = {reason: n for reason, n in manifest.counts.dropped.items() if n}
            step = FunnelStep(phase=manifest.phase, unit=unit, **counts)
            assert step.received == step.kept + sum(step.dropped.values()), step.phase
            steps.append(step)
    return steps
