"""How fast things go and how long answers are, as a finished run has measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import TypeAdapter

from dpo_dist.config import Config, Method
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.estimates.throughput import Pair, training_flops
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.runs.finished import FinishedRun, find_run
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Ballot, Candidate, Generation
from dpo_dist.training.metrics_log import MetricsLog

WHOLE_LOG = 10**12  # a step behind every other


@dataclass(frozen=True)
class Rates:
    """What was measured; None and an empty mapping: it was not.

    Tokens of a candidate and of an answer of the evaluation in the mean; the share of the prompts
    that became pairs; tokens per second of an engine; FLOP/s of a training process, what is
    computed twice left out; tokens by kind, and seconds of a judge's worker, per request.
    """

    run: Path | None = None
    candidate_tokens: float | None = None
    answer_tokens: float | None = None
    kept: float | None = None
    sampling: float | None = None
    evaluation: float | None = None
    training: float | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    seconds_a_request: float | None = None


def calibrate(path: Path, config: Config, shape: ModelShape) -> Rates:
    """The rates of a finished run. Raises `DataError` for one that is not finished, and
    `ConfigError` for one of another model."""
    run = find_run(path)
    ours, theirs = config.model.base, run.config["model"]["base"]
    if Path(ours).name != Path(theirs).name:
        raise ConfigError(
            f"--calibrate {path}: that run used the model {theirs}, this one uses {ours}: its "
            "speeds do not carry over"
        )
    usage, seconds = _judge(run)
    return Rates(
        run=run.root,
        candidate_tokens=_mean_length(run, "sample", "candidates.jsonl", Candidate),
        answer_tokens=_mean_length(run, "evaluate", "generations.jsonl", Generation),
        kept=_kept(run),
        sampling=_engine_rate(run, "sample"),
        evaluation=_engine_rate(run, "evaluate"),
        training=_training_rate(run, shape),
        usage=usage,
        seconds_a_request=seconds,
    )


def _mean_length(
    run: FinishedRun, phase: str, file: str, record: type[Candidate] | type[Generation]
) -> float | None:
    if phase not in run.folders:
        return None
    return fmean(len(r.token_ids) for r in read_records(run.folders[phase] / file, record))


def _kept(run: FinishedRun) -> float | None:
    if not {"sample", "judge"} <= run.folders.keys():
        return None
    prompts: int = run.manifests["sample"]["counts"]["in"]
    pairs: int = run.manifests["judge"]["counts"]["kept"]
    return pairs / prompts


def _engine_rate(run: FinishedRun, phase: str) -> float | None:
    """Of one engine; those that worked beside each other have left a file each."""
    together: float | None = run.manifests.get(phase, {}).get("tokens_per_second")
    if together is None:
        return None
    paces = len(list(run.folders[phase].glob("pace-*-of-*.json"))) or 1
    return together / paces


def _training_rate(run: FinishedRun, shape: ModelShape) -> float | None:
    """FLOP/s of a process between two lines of the log; TRL counts a prompt's tokens twice."""
    import pyarrow.parquet

    if "train" not in run.folders:
        return None
    folder = run.folders["train"]
    lines = MetricsLog(folder / "metrics.jsonl").until(WHOLE_LOG)
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    if not rates:
        return None
    columns = [f"{name}_ids" for name in ("prompt", "chosen", "rejected")]
    table = pyarrow.parquet.read_table(folder / "tokens" / "train.parquet", columns=columns)
    pairs = [
        Pair(*map(len, row))
        for row in zip(*(table[column].to_pylist() for column in columns), strict=True)
    ]
    counted = fmean(2 * p.prompt + p.scored for p in pairs)
    settings: dict[str, Any] = run.config["train"]["method"]
    method: Method = TypeAdapter(Method).validate_python(settings)
    flops = fmean(training_flops(shape, method, pair) for pair in pairs)
    processes: int = run.manifests["train"]["processes"]
    rate: float = median(rates) / counted * flops / processes
    return rate


def _judge(run: FinishedRun) -> tuple[dict[str, float], float | None]:
    """Tokens by kind and a worker's seconds per request, of a judge that was asked for money."""
    if "judge" not in run.folders:
        return {}, None
    paid = [b for b in read_records(run.folders["judge"] / BALLOTS, Ballot) if b.usage]
    if not paid:
        return {}, None
    kinds = {kind for ballot in paid for kind in ballot.usage if kind != "batch_attempts"}
    usage = {kind: fmean(ballot.usage.get(kind, 0) for ballot in paid) for kind in kinds}
    judge = run.config["judge"]["judge"]
    if judge.get("transport") == "batch":
        return usage, None
    seconds: float = run.manifests["judge"]["wall_seconds"]
    return usage, seconds * judge.get("concurrency", 1) / len(paid)
