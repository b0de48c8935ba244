"""evaluate: every arm answers the held-out prompts; metrics and a judge compare the answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from dpo_dist.config import Config, EngineConfig, Evaluate, MetricJudgeConfig, required
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import check_disjoint, read_prompts
from dpo_dist.data.rows import iterate_rows, source_identity
from dpo_dist.errors import DataError
from dpo_dist.evaluation.benchmarks import check_tasks
from dpo_dist.evaluation.comparison import Points, summarise
from dpo_dist.evaluation.scoring import score_answers
from dpo_dist.generation.engine import Completion, Request, build_engine
from dpo_dist.generation.sampling import answer_all, engine_seed
from dpo_dist.metrics import Metric, build_metrics, check_references
from dpo_dist.phases.benchmarks import ask_benchmarks
from dpo_dist.phases.known_answers import answered, take_over
from dpo_dist.phases.verdicts import judge_pairs, judge_scores, score_name
from dpo_dist.runs.inputs import judge_files, metric_files
from dpo_dist.runs.weights import Weights, arm_weights
from dpo_dist.storage.artifacts import PhaseDirectory, directory_digest, write_json, write_records
from dpo_dist.storage.records import Generation, Prompt
from dpo_dist.storage.shards import Journals
from dpo_dist.system.ranks import Shard

SECTIONS = ("evaluate",)
JOURNALS = "generations"


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the held-out prompts, the arms' weights, rubrics and schemas."""
    evaluate = required(config.evaluate)
    return {
        "prompts": source_identity(evaluate.prompts),
        "weights": {arm: arm_weights(config, arm).identity() for arm in evaluate.arms},
        "metric_files": metric_files(evaluate.metrics),
        "judge_files": judge_files(evaluate.judge) if evaluate.judge else {},
        "score_files": [judge_files(score.judge) for score in evaluate.judge_scores],
        **_benchmark_files(evaluate),
    }


def engine(config: Config) -> EngineConfig:
    """What answers."""
    return config.evaluation_engine


def expected(config: Config, shard: Shard) -> int:
    """How many answers the shard asks for, those to prompts that are too long included."""
    evaluate = required(config.evaluate)
    prompts = sum(1 for _ in iterate_rows(evaluate.prompts))
    return len(evaluate.arms) * len(evaluate.decodings) * shard.size(prompts)


def run(config: Config, out: PhaseDirectory) -> dict[str, Any] | None:
    """Generate, score, compare; the comparison is written to `scores.json`. A shard only
    generates: None."""
    evaluate = required(config.evaluate)
    prompts = read_prompts(evaluate.prompts)
    if config.sample is not None:
        check_disjoint(read_prompts(config.sample.prompts), prompts)
    requests, prompts, too_long = _requests(config, prompts, out.shard)
    metrics = _checked(evaluate, prompts)
    write_records(out.path / "prompts.jsonl", prompts)

    with Journals(out, JOURNALS, Generation, answered) as journals:
        order = [request.id for group in requests.values() for request in group]
        taken_over = take_over(config, out, order, journals)
        speed = _generate(config, requests, out.shard, journals)
        if not out.shard.whole:
            return None  # judges are asked by the one process that has all answers
        journals.refresh()
        answers = {(g.arm, g.decoding, g.prompt_id): g for g in journals.read(order)}
    write_records(out.path / "generations.jsonl", answers.values())

    by_id = {prompt.id: prompt for prompt in prompts}
    scored = score_answers(metrics, by_id, (answers[key] for key in sorted(answers)))
    write_records(out.path / "unscored.jsonl", scored.unscored)
    verdicts, judged = judge_pairs(config, prompts, answers, out)
    points, spent = judge_scores(config, prompts, answers, out)
    benchmarks, documents = ask_benchmarks(config, out)
    write_records(out.path / "scores.jsonl", [*scored.scores, *points])
    decodings = [decoding.model_dump(mode="json") for decoding in evaluate.decodings]
    rated = [Points(score_name(n), score.label) for n, score in enumerate(evaluate.judge_scores)]
    summary = summarise(
        [*metrics, *rated, *benchmarks],
        [*scored.scores, *points, *documents],
        verdicts,
        evaluate.arms,
        decodings,
        config.run.seed,
        unscored=scored.unscored,
        labelled=scored.labelled,
        lengths={
            arm: {p.id: len(answers[arm, 0, p.id].text) for p in prompts} for arm in evaluate.arms
        },
        guard=evaluate.guard,
    )
    write_json(out.path / "scores.json", summary)
    return {
        "counts": {
            "in": len(prompts) + too_long,
            "kept": len(prompts),
            "dropped": {"prompt_too_long": too_long},
        },
        "generations": len(answers),
        "engines": sorted({answer.engine for answer in answers.values()}),
        **taken_over,
        "cut_off": sum(answer.finish_reason == "length" for answer in answers.values()),
        **judged,
        "judge_scores": spent,
        **speed,
    }


def _benchmark_files(evaluate: Evaluate) -> dict[str, str]:
    """The digest of the folder with the user's own tasks, where there is one."""
    section = evaluate.benchmarks
    if section is None or section.include_path is None:
        return {}
    return {"benchmark_tasks": directory_digest(section.include_path)}


def _checked(evaluate: Evaluate, prompts: list[Prompt]) -> list[Metric]:
    """The metrics, once all that scores can be sure of what it needs: generating is dear."""
    metrics = build_metrics(evaluate.metrics)
    check_references(metrics, prompts)
    if isinstance(evaluate.judge, MetricJudgeConfig):
        check_references(build_metrics(evaluate.judge.metrics), prompts)
    if evaluate.benchmarks is not None:
        check_tasks(evaluate.benchmarks)
    return metrics


def _requests(
    config: Config, prompts: list[Prompt], shard: Shard
) -> tuple[dict[str, list[Request]], list[Prompt], int]:
    """(the shard's requests by the model that serves them, the prompts that fit, how many did not).

    Arms that are one model with different adapters share one engine.
    """
    evaluate = required(config.evaluate)
    weights: dict[str, Weights] = {arm: arm_weights(config, arm) for arm in evaluate.arms}
    tokenizer = load_tokenizer(
        weights[evaluate.arms[-1]].model, trust_remote_code=config.model.trust_remote_code
    )
    limit = max(decoding.max_tokens or evaluate.max_new_tokens for decoding in evaluate.decodings)
    ids = {prompt.id: tuple(prompt_ids(tokenizer, prompt.messages)) for prompt in prompts}
    room = engine(config).max_model_len
    fitting = [p for p in prompts if len(ids[p.id]) + limit <= room]
    if not fitting:
        raise DataError(f"no held-out prompt fits into max_model_len {room}")
    own = [prompt for number, prompt in enumerate(fitting) if shard.holds(number)]
    requests: dict[str, list[Request]] = {}
    for arm, (number, decoding) in _product(evaluate):
        group = requests.setdefault(weights[arm].model, [])
        group += [
            Request(
                id=f"{arm}/{number}/{prompt.id}",
                prompt_ids=ids[prompt.id],
                sampling=decoding,
                max_tokens=decoding.max_tokens or evaluate.max_new_tokens,
                adapter=weights[arm].adapter,
            )
            for prompt in own
        ]
    return requests, fitting, len(prompts) - len(fitting)


def _product(evaluate: Evaluate) -> Iterable[tuple[str, tuple[int, Any]]]:
    return ((arm, item) for arm in evaluate.arms for item in enumerate(evaluate.decodings))


def _generate(
    config: Config,
    requests: dict[str, list[Request]],
    shard: Shard,
    journals: Journals[Generation],
) -> dict[str, Any]:
    """Answer what the journals lack, one engine per model, one after the other."""
    seconds, tokens, answered = 0.0, 0, len(journals)
    for model, group in requests.items():
        missing = [request for request in group if request.id not in journals]
        if not missing:
            continue
        adapters = sorted({r.adapter for r in missing if r.adapter is not None})
        answering = build_engine(
            engine(config),
            model,
            dtype=config.model.dtype,
            seed=engine_seed(config.run.seed, answered, shard),
            adapters=adapters,
            trust_remote_code=config.model.trust_remote_code,
        )

        def record(completion: Completion, identity: str = answering.identity) -> Generation:
            arm, decoding, prompt_id = completion.id.split("/", 2)
            return Generation(
                prompt_id=prompt_id,
                arm=arm,
                decoding=int(decoding),
                text=completion.text,
                token_ids=completion.token_ids,
                finish_reason=completion.finish_reason,
                engine=identity,
            )

        started = time.monotonic()
        try:
            pace = answer_all(
                answering,
                missing,
                record,
                journals.own,
                name="evaluate",
                done=len(group) - len(missing),
                total=len(group),
            )
        finally:
            answering.close()
        tokens += pace.tokens
        seconds += time.monotonic() - started
        answered += len(missing)
    return {"tokens_per_second": round(tokens / seconds, 1)} if tokens else {}
