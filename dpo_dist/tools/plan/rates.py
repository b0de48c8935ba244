"""Rates and lengths measured by a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from dpo_dist.config import Model, required
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.throughput import TRAINING_UTILIZATION, Pair, training_flops
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.runs.finished import FinishedRun, find_run
from dpo_dist.runs.manifests import EvaluateManifest, SampleManifest
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Ballot, Candidate, Generation
from dpo_dist.tools.plan.data import Quantity
from dpo_dist.training.metrics_log import read_metrics


@dataclass(frozen=True)
class Rates:
    """Measured values; None or an empty mapping: not measured.

    `candidate_tokens` and `answer_tokens` are mean tokens per candidate and per answer of the
    evaluation. `kept` is the share of the prompts that became pairs; 1 if unknown. `sampling` and
    `evaluation` are tokens per second of an engine. `training` is the FLOP/s of a process, without
    operations repeated by checkpointing. `usage` has a judge's tokens per request, by kind.
    `seconds_per_request` is the time from a request to its ballot; other requests may run at the
    same time.
    """

    run: Path | None = None
    candidate_tokens: float | None = None
    answer_tokens: float | None = None
    kept: float = 1.0
    sampling: float | None = None
    evaluation: float | None = None
    training: float | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    seconds_per_request: float | None = None

    def measured(self, value: float | None, assumed: float, note: str = "") -> Quantity:
        """The measured value, or the assumed one with its note if nothing was measured."""
        if value is not None:
            return Quantity(value, "measured", str(self.run))
        return Quantity(float(assumed), "assumed", note)

    def utilization(self, cluster: Cluster) -> float:
        """The share of the GPU's peak that training reaches. Raises `ConfigError` above 1."""
        if self.training is None:
            return TRAINING_UTILIZATION
        reached = self.training / cluster.gpu.flops
        if reached > 1:
            raise ConfigError(
                f"--calibrate {self.run}: that run trained faster than a {cluster.name} can, so "
                "it used another kind of GPU"
            )
        return reached


def calibrate(path: Path, model: Model, shape: ModelShape) -> Rates:
    """The rates of a finished run. Raises `DataError` for a run that is not finished, and
    `ConfigError` for a run of another model."""
    run = find_run(path)
    ours, theirs = model.base, run.config.model.base
    if Path(ours).name != Path(theirs).name:
        raise ConfigError(
            f"--calibrate {path}: that run used the model {theirs}, this one uses {ours}: its "
            "rates do not apply"
        )
    usage, seconds = _judge(run)
    sample, judge = run.manifests.sample, run.manifests.judge
    return Rates(
        run=run.root,
        candidate_tokens=_mean_length(run, "sample", "candidates.jsonl", Candidate),
        answer_tokens=_mean_length(run, "evaluate", "generations.jsonl", Generation),
        kept=judge.counts.kept / sample.counts.received if sample and judge else 1.0,
        sampling=_engine_rate(run, sample),
        evaluation=_engine_rate(run, run.manifests.evaluate),
        training=_training_rate(run, shape),
        usage=usage,
        seconds_per_request=seconds,
    )


def _mean_length(
    run: FinishedRun, phase: str, file: str, record: type[Candidate] | type[Generation]
) -> float | None:
    if phase not in run.folders:
        return None
    return fmean(len(r.token_ids) for r in read_records(run.folders[phase] / file, record))


def _engine_rate(
    run: FinishedRun, manifest: SampleManifest | EvaluateManifest | None
) -> float | None:
    """Tokens per second of one engine; each of several engines has written a file `pace-...`."""
    if manifest is None or manifest.tokens_per_second is None:
        return None
    paces = len(list(run.folders[manifest.phase].glob("pace-*-of-*.json"))) or 1
    return manifest.tokens_per_second / paces


def _training_rate(run: FinishedRun, shape: ModelShape) -> float | None:
    """FLOP/s of a process, from the median rate in the log."""
    import pyarrow.parquet

    manifest = run.manifests.train
    if manifest is None:
        return None
    folder, key = run.folders["train"], "tokens_per_second"
    lines = read_metrics(folder / "metrics.jsonl")
    rates = [line.values[key] for line in lines if key in line.values]
    if not rates:
        return None
    columns = [f"{name}_ids" for name in ("prompt", "chosen", "rejected")]
    table = pyarrow.parquet.read_table(folder / "tokens" / "train.parquet", columns=columns)
    tokens = (table[column].to_pylist() for column in columns)
    pairs = [Pair(*map(len, row)) for row in zip(*tokens, strict=True)]
    counted = fmean(pair.prompt + pair.scored for pair in pairs)
    method = required(run.config.train).method
    flops = fmean(training_flops(shape, method, pair) for pair in pairs)
    return median(rates) / counted * flops / manifest.processes


def _judge(run: FinishedRun) -> tuple[dict[str, float], float | None]:
    """(tokens per request by kind, seconds per request) of a judge that costs money; seconds are
    None for a batch."""
    manifest = run.manifests.judge
    if manifest is None:
        return {}, None
    paid = [b for b in read_records(run.folders["judge"] / BALLOTS, Ballot) if b.usage]
    if not paid:
        return {}, None
    kinds = {kind for ballot in paid for kind in ballot.usage if kind.endswith("_tokens")}
    usage = {kind: fmean(ballot.usage.get(kind, 0) for ballot in paid) for kind in kinds}
    judge = required(run.config.judge).judge
    if judge.sent == "batch":
        return usage, None
    return usage, manifest.wall_seconds * judge.requests_at_once / len(paid)
