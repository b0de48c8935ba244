"""evaluate: all arms answer the held-out prompts; metrics and judges compare the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pydantic import JsonValue

from dpo_dist.config import ChatTemplate, EngineConfig, Evaluate, MetricJudgeConfig, required
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import check_disjoint, read_prompts
from dpo_dist.data.rows import read_rows, source_identity
from dpo_dist.data.templates import TRIED, try_prompts
from dpo_dist.data.thoughts import spoken
from dpo_dist.errors import GATE, DataError
from dpo_dist.evaluation.benchmarks import check_tasks
from dpo_dist.evaluation.comparison import summarise
from dpo_dist.evaluation.outcome import decide
from dpo_dist.evaluation.scores import SCORES, read_scores
from dpo_dist.evaluation.scoring import score_answers
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.generation.sampling import answer_all, engine_seed
from dpo_dist.metrics import Metric, build_metrics, check_references
from dpo_dist.phases.known_answers import request_of, take_over
from dpo_dist.phases.verdicts import Answers, arm_benchmarks, judge_pairs, judge_scores, score_rows
from dpo_dist.runs.arms import ArmInUse, arms_of
from dpo_dist.runs.manifests import EvaluateResult
from dpo_dist.runs.run import Run
from dpo_dist.runs.weights import resource_digests
from dpo_dist.storage.artifacts import PhaseDirectory, directory_digest, write_records
from dpo_dist.storage.figures import write_figures
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Generation, Prompt
from dpo_dist.storage.shards import Journals
from dpo_dist.system.console import counted, say
from dpo_dist.system.ranks import Shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EvaluatePhase:
    """Generates answers, scores them and compares the arms. A shard only generates."""

    name = "evaluate"
    sections = ("evaluate",)
    journals = "generations"

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The held-out prompts, the arms' weights, and the files of metrics and judges."""
        evaluate, arms = required(run.config.evaluate), arms_of(run)
        inputs: dict[str, JsonValue] = {
            "prompts": source_identity(evaluate.prompts),
            "weights": {name: arm.weights.identity() for name, arm in arms.items()},
            "metric_files": resource_digests(evaluate.metrics),
            "judge_files": resource_digests([evaluate.judge] if evaluate.judge else []),
            "score_files": [resource_digests([score.judge]) for score in evaluate.judge_scores],
        }
        shown: dict[str, JsonValue] = {
            name: arm.prompting.shown for name, arm in arms.items() if arm.prompting.shown
        }
        if shown:
            inputs["prompting"] = shown
        if evaluate.benchmarks is not None and evaluate.benchmarks.include_path is not None:
            inputs["benchmark_tasks"] = directory_digest(evaluate.benchmarks.include_path)
        return inputs

    def engine(self, run: Run) -> EngineConfig:
        return run.config.evaluation_engine

    def expected(self, run: Run, shard: Shard) -> int:
        evaluate = required(run.config.evaluate)
        prompts = sum(1 for _ in read_rows(evaluate.prompts))
        return len(evaluate.arms) * len(evaluate.decodings) * shard.size(prompts)

    def run(self, run: Run, out: PhaseDirectory) -> EvaluateResult | None:
        """Generate the missing answers, compare them, and write `scores.json`."""
        evaluate = required(run.config.evaluate)
        prompts = read_prompts(evaluate.prompts)
        if run.config.sample is not None:
            check_disjoint(read_prompts(run.config.sample.prompts), prompts)
        requests = _requests(run, prompts, out.shard)
        metrics = _checked_metrics(evaluate, requests.prompts)
        write_records(out.path / "prompts.jsonl", requests.prompts)
        with Journals(out, self.journals, Generation, request_of) as journals:
            order = [
                request.id for model in requests.by_model.values() for request in model.requests
            ]
            taken_over = take_over(run, out.path, order, journals)
            speed = _generate(run, requests, out.shard, journals)
            if not out.shard.whole:
                return None  # the process that collects all answers asks the judges
            journals.refresh()
            answers = {(g.arm, g.decoding, g.prompt_id): g for g in journals.read(order)}
        write_records(out.path / "generations.jsonl", answers.values())
        return _compare(run, out, requests, answers, metrics, taken_over, speed)


def gate(run: Run) -> int:
    """Print the outcome of the complete evaluate phase with the run file's `evaluate.guard`, and
    return its exit code."""
    outcome = decide(read_scores(run.directory("evaluate")), required(run.config.evaluate).guard)
    say(f"gate: {outcome.outcome}: {'; '.join(outcome.reasons)}")
    say(f"gate: guarded: {', '.join(outcome.guarded) or 'no metric'}")
    return GATE[outcome.outcome]


@dataclass(frozen=True)
class _Model:
    """A model, how it renders conversations, and what it is asked."""

    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    requests: list[Request] = field(default_factory=list)


@dataclass(frozen=True)
class _Requests:
    """The prompts that fit the engine, the number of prompts that are too long, and the shard's
    requests by model."""

    prompts: list[Prompt]
    too_long: int
    by_model: dict[str, _Model]


def _checked_metrics(evaluate: Evaluate, prompts: list[Prompt]) -> list[Metric]:
    """The metrics. Checks everything that scores before the expensive generation."""
    metrics = build_metrics(evaluate.metrics)
    check_references(metrics, prompts)
    if isinstance(evaluate.judge, MetricJudgeConfig):
        check_references(build_metrics(evaluate.judge.metrics), prompts)
    if evaluate.benchmarks is not None:
        check_tasks(evaluate.benchmarks)
    return metrics


def _requests(run: Run, prompts: list[Prompt], shard: Shard) -> _Requests:
    """The requests of all arms, grouped by model, so that arms which differ only in the adapter or
    in what they are shown share an engine. A prompt that is too long for one arm is left out for
    all. Raises `DataError` if no prompt fits the engine."""
    config, evaluate, arms = run.config, required(run.config.evaluate), arms_of(run)
    models = _models(run, arms)
    ids = _prompt_ids(evaluate, arms, models, prompts)
    limit = max(decoding.max_tokens or evaluate.max_new_tokens for decoding in evaluate.decodings)
    room = config.evaluation_engine.max_model_len
    fits = {arm: {p.id for p in prompts if len(ids[arm][p.id]) + limit <= room} for arm in arms}
    fitting = [prompt for prompt in prompts if all(prompt.id in found for found in fits.values())]
    if not fitting:
        least = min(fits, key=lambda arm: len(fits[arm]))
        raise DataError(
            f"no held-out prompt fits into max_model_len {room} with an answer of {limit} tokens "
            f"in every arm; {counted(len(fits[least]), 'prompt')} fit in the arm {least}"
        )
    own = [prompt for number, prompt in enumerate(fitting) if shard.holds(number)]
    for name, arm in arms.items():
        for number, decoding in enumerate(evaluate.decodings):
            models[arm.weights.model].requests.extend(
                Request(
                    id=f"{name}/{number}/{prompt.id}",
                    prompt_ids=ids[name][prompt.id],
                    sampling=decoding,
                    max_tokens=decoding.max_tokens or evaluate.max_new_tokens,
                    adapter=arm.weights.adapter,
                )
                for prompt in own
            )
    return _Requests(fitting, len(prompts) - len(fitting), models)


def _models(run: Run, arms: Mapping[str, ArmInUse]) -> dict[str, _Model]:
    """The models of all arms. The run's own share the tokenizer of the last one; another model
    renders conversations in its own way."""
    config = run.config.model
    shared = [arm.weights.model for arm in arms.values() if not arm.is_other_model]
    models: dict[str, _Model] = {}
    tokenizers: dict[str, PreTrainedTokenizerBase] = {}
    for arm in arms.values():
        name = arm.weights.model
        template = ChatTemplate() if arm.is_other_model else config.template
        source = name if arm.is_other_model else shared[-1]
        if source not in tokenizers:
            tokenizers[source] = load_tokenizer(
                source, template, trust_remote_code=config.trust_remote_code
            )
        models.setdefault(name, _Model(template, tokenizers[source]))
    return models


def _prompt_ids(
    evaluate: Evaluate,
    arms: Mapping[str, ArmInUse],
    models: Mapping[str, _Model],
    prompts: Sequence[Prompt],
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The token ids of all prompts, by arm and prompt. Raises `DataError` for a prompt that the
    chat template cannot render, and for one that is also an example."""
    ids: dict[str, dict[str, tuple[int, ...]]] = {}
    known: dict[tuple[int, str], dict[str, tuple[int, ...]]] = {}
    for name, arm in arms.items():
        arm.prompting.check_disjoint(prompts)
        tokenizer = models[arm.weights.model].tokenizer
        key = id(tokenizer), json.dumps(arm.prompting.shown)
        if key not in known:
            shown = [p.model_copy(update={"messages": arm.prompting.messages(p)}) for p in prompts]
            try_prompts(tokenizer, evaluate.prompts, shown[:TRIED])
            known[key] = {p.id: tuple(prompt_ids(tokenizer, p.messages)) for p in shown}
        ids[name] = known[key]
    return ids


def _generate(
    run: Run, requests: _Requests, shard: Shard, journals: Journals[Generation]
) -> float | None:
    """Generate the answers that the journals lack, with one engine after another. Returns tokens
    per second; None if no answer was missing."""
    config = run.config
    seconds, tokens, done = 0.0, 0, len(journals)
    for name, model in requests.by_model.items():
        missing = [request for request in model.requests if request.id not in journals]
        if not missing:
            continue
        engine = build_engine(
            config.evaluation_engine,
            name,
            dtype=config.model.dtype,
            seed=engine_seed(config.run.seed, done, shard),
            adapters=sorted({r.adapter for r in missing if r.adapter is not None}),
            template=model.template,
            trust_remote_code=config.model.trust_remote_code,
        )
        asked = {request.id: request for request in missing}
        started = time.monotonic()
        with closing(engine):
            pace = answer_all(
                engine,
                missing,
                partial(_generation, model.tokenizer, asked, engine.identity),
                journals.own,
                name="evaluate",
                done=len(model.requests) - len(missing),
                total=len(model.requests),
            )
        tokens += pace.tokens
        seconds += time.monotonic() - started
        done += len(missing)
    return round(tokens / seconds, 1) if tokens else None


def _generation(
    tokenizer: PreTrainedTokenizerBase,
    asked: Mapping[str, Request],
    engine: str,
    completion: Completion,
) -> Generation:
    prompt = asked[completion.id].prompt_ids
    answer = spoken(tokenizer, prompt, completion.token_ids, completion.text)
    arm, decoding, prompt_id = completion.id.split("/", 2)
    return Generation(
        prompt_id=prompt_id,
        arm=arm,
        decoding=int(decoding),
        text=answer.text,
        thought=answer.thought,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        engine=engine,
    )


def _compare(
    run: Run,
    out: PhaseDirectory,
    requests: _Requests,
    answers: Answers,
    metrics: list[Metric],
    taken_over: int | None,
    speed: float | None,
) -> EvaluateResult:
    """Score the answers, ask the judges, and write the comparison."""
    evaluate, prompts = required(run.config.evaluate), requests.prompts
    arms = evaluate.named_arms
    by_id = {prompt.id: prompt for prompt in prompts}
    scored = score_answers(metrics, by_id, (answers[key] for key in sorted(answers)))
    write_records(out.path / "unscored.jsonl", scored.unscored)
    compared = judge_pairs(run, prompts, answers, out)
    points, scorer_spends = judge_scores(run, prompts, answers, out)
    benchmarks, document_scores = arm_benchmarks(run, out)
    write_records(out.path / "scores.jsonl", [*scored.scores, *points])
    scores = summarise(
        [*metrics, *score_rows(evaluate), *benchmarks],
        [*scored.scores, *points, *document_scores],
        compared.verdicts,
        list(arms),
        evaluate.decodings,
        run.config.run.seed,
        unscored=scored.unscored,
        labelled=scored.labelled,
        lengths={arm: {p.id: len(answers[arm, 0, p.id].text) for p in prompts} for arm in arms},
        guard=evaluate.guard,
        arm_labels={name: arm.label for name, arm in arms.items()},
    )
    write_figures(out.path / SCORES, scores)
    return EvaluateResult(
        counts=Counts(
            received=len(prompts) + requests.too_long,
            kept=len(prompts),
            dropped={"prompt_too_long": requests.too_long},
        ),
        generations=len(answers),
        engines=tuple(sorted({answer.engine for answer in answers.values()})),
        taken_over=taken_over,
        cut_off=sum(answer.finish_reason == "length" for answer in answers.values()),
        judge=compared.judge,
        spend=compared.spend,
        judge_scores=tuple(scorer_spends),
        tokens_per_second=speed,
    )
