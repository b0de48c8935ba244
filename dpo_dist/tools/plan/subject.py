"""What is to be forecast: a run file, a model's shape, GPUs, and as much as can be known of the
data and of how fast things go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dpo_dist.config import Config
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.fit import check_shares
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.runs.directories import phases_of
from dpo_dist.runs.shapes import find_shape
from dpo_dist.tools.plan.data import Pairs, Texts, demonstrations_of, pairs_of, prompts_of
from dpo_dist.tools.plan.figure import Figure, Given
from dpo_dist.tools.plan.hours import utilization
from dpo_dist.tools.plan.rates import Rates, calibrate


@dataclass(frozen=True)
class Subject:
    """`candidate` and `answer` are the mean tokens of a candidate and of an answer of the
    evaluation; `kept` is the share of the prompts that become pairs. What is None is not asked for
    or not known; `unknown` says how to tell it."""

    config: Config
    cluster: Cluster
    shape: ModelShape
    shape_from: str
    rates: Rates
    utilization: float
    candidate: Figure
    answer: Figure
    kept: Figure
    demonstrations: Texts | None
    prompts: Texts | None
    held_out: Texts | None
    pairs: Pairs | None
    unknown: list[str] = field(default_factory=list)


def find_subject(
    config: Config,
    cluster: Cluster,
    given: Given,
    *,
    preset: str | None = None,
    calibration: Path | None = None,
) -> Subject:
    """Read what can be read. Raises `ConfigError` where the GPUs cannot share the global batch."""
    if config.train is not None:
        check_shares(config.train.global_batch_size, cluster.size)
    shape, shape_from = find_shape(config, preset)
    rates = calibrate(calibration, config, shape) if calibration else Rates()
    reached = utilization(cluster, rates)
    if reached > 1:
        raise ConfigError(
            f"--calibrate {calibration}: that run trained faster than a {cluster.name} can: it "
            "used another kind of GPU"
        )
    model, wanted = config.model.base, phases_of(config)
    sample, evaluate = config.sample, config.evaluate
    most = sample.max_new_tokens if sample else 0
    candidate = _length(rates, rates.candidate_tokens, most, "sample")
    answer = _length(
        rates, rates.answer_tokens, evaluate.max_new_tokens if evaluate else 0, "evaluate"
    )
    kept = Figure(1.0, "assumed", "no tie, no dropped pair")
    if rates.kept is not None:
        kept = Figure(rates.kept, "measured", str(rates.run))
    rows = demonstrations_of(config.sft.data, model) if config.sft else None
    prompts = prompts_of(sample.prompts, given.prompts, model) if sample else None
    held_out = prompts_of(evaluate.prompts, given.eval_prompts, model) if evaluate else None
    pairs = None
    if config.train is not None:
        pairs = pairs_of(config, given, prompts, candidate.value, kept.value)
    unknown = [
        f"{phase}: {what} are not on this machine; {flag}"
        for phase, found, what, flag in (
            ("sft", rows, "the demonstrations", "fetch them to a file first"),
            ("sample", prompts, "the prompts", "say how many: --prompts N"),
            ("train", pairs, "the pairs", "say how many: --pairs N --tokens-per-pair M"),
            ("evaluate", held_out, "the prompts", "say how many: --eval-prompts N"),
        )
        if phase in wanted and found is None
    ]
    return Subject(
        *(config, cluster, shape, shape_from, rates, reached, candidate, answer, kept),
        *(rows, prompts, held_out, pairs, unknown),
    )


def _length(rates: Rates, measured: float | None, most: int, phase: str) -> Figure:
    if measured is not None:
        return Figure(measured, "measured", str(rates.run))
    return Figure(float(most), "assumed", f"{phase}.max_new_tokens, the upper limit")
