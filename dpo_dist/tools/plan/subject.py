"""The inputs of a plan: run file, model sizes, GPUs, and known data and rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import Config, EngineConfig, Lora, VllmEngine
from dpo_dist.estimates.fit import check_shares
from dpo_dist.estimates.hardware import Cluster
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.runs.resources import find_shape
from dpo_dist.runs.run import Run
from dpo_dist.tools.plan.data import (
    Answering,
    Given,
    Pairs,
    Texts,
    demonstrations_of,
    pairs_of,
    prompts_of,
)
from dpo_dist.tools.plan.rates import Rates, calibrate

LIMIT = "max_new_tokens, the upper limit"
# What to do if a phase's data is not on this machine.
ELSEWHERE = {
    "sft": "the demonstrations are not on this machine; download them to a file first",
    "sample": "the prompts are not on this machine; give their number: --prompts N",
    "train": "the pairs are not on this machine; give their number: --pairs N --tokens-per-pair M",
    "evaluate": "the prompts are not on this machine; give their number: --eval-prompts N",
}


@dataclass(frozen=True, kw_only=True)
class PlannedWork:
    """What a run generates; None if the run file does not need it or if its amount is unknown."""

    run: Run
    sampling: Answering | None = None
    evaluation: Answering | None = None

    @property
    def config(self) -> Config:
        return self.run.config


@dataclass(frozen=True, kw_only=True)
class Subject(PlannedWork):
    """The inputs of a plan. `utilization` is the share of the GPU's peak that training reaches.
    Data is None if the run file does not need it or if its amount is unknown; `unknown` names the
    unknown data, and how to specify its amount."""

    cluster: Cluster
    shape: ModelShape
    shape_from: str
    rates: Rates
    utilization: float
    demonstrations: Texts | None = None
    pairs: Pairs | None = None
    unknown: tuple[str, ...] = ()


def find_subject(
    run: Run,
    cluster: Cluster,
    given: Given,
    *,
    preset: str | None = None,
    calibration: Path | None = None,
) -> Subject:
    """Read what is on this machine. Raises `ConfigError` if the GPUs cannot share the global batch
    or if `calibration` is a run on other GPUs, and `ModelError` for a model of unknown sizes."""
    config = run.config
    if config.train is not None:
        check_shares(config.train.global_batch_size, cluster.size)
    shape, shape_from = find_shape(config.model, preset)
    rates = calibrate(calibration, config.model, shape) if calibration else Rates()
    sft = demonstrations_of(config.sft.data, config.model.base) if config.sft else None
    work = find_work(run, given, rates)
    sampling, evaluation = work.sampling, work.evaluation
    pairs = pairs_of(run, given, sampling, rates.kept) if config.train is not None else None
    data = {"sft": sft, "sample": sampling, "train": pairs, "evaluate": evaluation}
    return Subject(
        run=run,
        cluster=cluster,
        shape=shape,
        shape_from=shape_from,
        rates=rates,
        utilization=rates.utilization(cluster),
        demonstrations=sft,
        sampling=sampling,
        pairs=pairs,
        evaluation=evaluation,
        unknown=tuple(
            f"{phase}: {ELSEWHERE[phase]}"
            for phase, found in data.items()
            if phase in run.phases and found is None
        ),
    )


def find_work(run: Run, given: Given, rates: Rates) -> PlannedWork:
    """What the run generates, from the prompts on this machine."""
    return PlannedWork(
        run=run, sampling=_sampling(run, given, rates), evaluation=_evaluation(run, given, rates)
    )


def evaluations(run: Run) -> int:
    """The number of rounds, each of which evaluates."""
    return len(run.rounds()) or 1


def passes(run: Run) -> int:
    """The number of rounds that use each prompt for sampling, judging and training."""
    rounds = run.config.rounds
    return 1 if rounds is not None and rounds.prompts == "split" else evaluations(run)


def _sampling(run: Run, given: Given, rates: Rates) -> Answering | None:
    section = run.config.sample
    if section is None or "sample" not in run.phases:
        return None
    prompts = prompts_of(section.prompts, given.prompts, run.config.model.base)
    if prompts is None:
        return None
    return Answering(
        phase="sample",
        prompts=prompts,
        per_prompt=len(section.slots),
        length=rates.measured(rates.candidate_tokens, section.max_new_tokens, f"sample.{LIMIT}"),
        engine=_as_vllm(section.engine),
        rate=rates.sampling,
        rounds=passes(run),
    )


def _evaluation(run: Run, given: Given, rates: Rates) -> Answering | None:
    section, train = run.config.evaluate, run.config.train
    if section is None:
        return None
    prompts = prompts_of(section.prompts, given.eval_prompts, run.config.model.base)
    if prompts is None:
        return None
    adapters = train is None or isinstance(train.method, Lora)
    arms = section.named_arms.values()
    # One engine serves a base with its adapters.
    of_base = {"base" if adapters else arm.own or "base" for arm in arms if arm.own or arm.adapter}
    others = {arm.model for arm in arms if not (arm.own or arm.adapter)}
    return Answering(
        phase="evaluate",
        prompts=prompts,
        per_prompt=len(section.arms) * len(section.decodings),
        length=rates.measured(rates.answer_tokens, section.max_new_tokens, f"evaluate.{LIMIT}"),
        engine=_as_vllm(run.config.evaluation_engine),
        rate=rates.evaluation,
        rounds=evaluations(run),
        starts=len(of_base) + len(others),
    )


def _as_vllm(engine: EngineConfig) -> VllmEngine:
    """An engine's settings; engines other than vLLM are planned as vLLM on the same GPUs."""
    if isinstance(engine, VllmEngine):
        return engine
    return VllmEngine(type="vllm", max_model_len=engine.max_model_len)
