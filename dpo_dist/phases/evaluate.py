"""evaluate: every arm answers the held-out prompts; metrics and a judge compare the answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dpo_dist.artifacts import PhaseDirectory, read_json, write_json, write_records
from dpo_dist.config import Config, Engine, Evaluate
from dpo_dist.console import say, warn
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.data.prompts import check_disjoint, read_prompts
from dpo_dist.data.rows import iterate_rows, source_identity
from dpo_dist.errors import DataError
from dpo_dist.evaluation.comparison import Points, summarise
from dpo_dist.generation.engine import Completion, Request, build_engine
from dpo_dist.generation.sampling import answer_all, engine_seed
from dpo_dist.judging.judge import alone, build_judge, build_scorer
from dpo_dist.judging.panel import Contest
from dpo_dist.judging.spend import open_ledger
from dpo_dist.metrics import build_metric
from dpo_dist.phases.asking import ask, ask_for_scores
from dpo_dist.phases.known_answers import known_answers
from dpo_dist.phases.runs import (
    Weights,
    arm_weights,
    evaluations,
    judge_files,
    metric_files,
    run_root,
)
from dpo_dist.ranks import Shard
from dpo_dist.records import Generation, Prompt, Score, Verdict
from dpo_dist.shards import Journals

SECTIONS = ("evaluate",)
JOURNALS = "generations"

Answers = dict[tuple[str, int, str], Generation]  # by arm, decoding and prompt id


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the held-out prompts, the arms' weights, rubrics and schemas."""
    evaluate = _section(config)
    return {
        "prompts": source_identity(evaluate.prompts),
        "weights": {arm: arm_weights(config, arm).identity() for arm in evaluate.arms},
        "metric_files": metric_files(evaluate.metrics),
        "judge_files": judge_files(evaluate.judge) if evaluate.judge else {},
        "score_files": [judge_files(score.judge) for score in evaluate.judge_scores],
    }


def engine(config: Config) -> Engine:
    """What answers."""
    of_its_own = _section(config).engine
    if of_its_own is not None:
        return of_its_own
    assert config.sample is not None
    return config.sample.engine


def expected(config: Config, shard: Shard) -> int:
    """How many answers the shard asks for, those to prompts that are too long included."""
    evaluate = _section(config)
    numbers = range(sum(1 for _ in iterate_rows(evaluate.prompts)))
    each = len(evaluate.arms) * len(evaluate.decodings)
    return each * sum(shard.holds(number) for number in numbers)


def run(config: Config, out: PhaseDirectory) -> dict[str, Any] | None:
    """Generate, score, compare; the comparison is written to `scores.json`. A shard only
    generates: None."""
    evaluate = _section(config)
    prompts = read_prompts(evaluate.prompts)
    if config.sample is not None:
        check_disjoint(read_prompts(config.sample.prompts), prompts)
    requests, prompts, too_long = _requests(config, prompts, out.shard)
    write_records(out.path / "prompts.jsonl", prompts)

    with Journals(out, JOURNALS, Generation, _name) as journals:
        taken_over = _take_over(config, requests, journals)
        speed = _generate(config, requests, out.shard, journals)
        if not out.shard.whole:
            return None  # judges are asked by the one process that has all answers
        journals.refresh()
        order = [request.id for group in requests.values() for request in group]
        answers = {(g.arm, g.decoding, g.prompt_id): g for g in journals.read(order)}
    write_records(out.path / "generations.jsonl", answers.values())

    metrics = [build_metric(metric) for metric in evaluate.metrics]
    by_id = {prompt.id: prompt for prompt in prompts}
    scores = [
        Score(
            prompt_id=prompt_id,
            arm=arm,
            decoding=decoding,
            metric=metric.key,
            value=metric.score(by_id[prompt_id], answer.text),
        )
        for (arm, decoding, prompt_id), answer in sorted(answers.items())
        for metric in metrics
    ]
    verdicts, judged = _judge(config, prompts, answers, out)
    points, spent = _judge_scores(config, prompts, answers, out)
    write_records(out.path / "scores.jsonl", [*scores, *points])
    decodings = [decoding.model_dump(mode="json") for decoding in evaluate.decodings]
    rated = [Points(score_name(n), score.label) for n, score in enumerate(evaluate.judge_scores)]
    summary = summarise(
        [*metrics, *rated],
        [*scores, *points],
        verdicts,
        evaluate.arms,
        decodings,
        config.run.seed,
    )
    write_json(out.path / "scores.json", summary)
    return {
        "counts": {
            "in": len(prompts) + too_long,
            "kept": len(prompts),
            "dropped": {"prompt_too_long": too_long},
        },
        "generations": len(answers),
        **taken_over,
        "engines": sorted({answer.engine for answer in answers.values()}),
        "cut_off": sum(answer.finish_reason == "length" for answer in answers.values()),
        **judged,
        "judge_scores": spent,
        **speed,
    }


def _section(config: Config) -> Evaluate:
    assert config.evaluate is not None
    return config.evaluate


def _name(generation: Generation) -> str:
    """The id of the request that it answers."""
    return f"{generation.arm}/{generation.decoding}/{generation.prompt_id}"


def _requests(
    config: Config, prompts: list[Prompt], shard: Shard
) -> tuple[dict[str, list[Request]], list[Prompt], int]:
    """(the shard's requests by the model that serves them, the prompts that fit, how many did not).

    Arms that are one model with different adapters share one engine.
    """
    evaluate = _section(config)
    weights: dict[str, Weights] = {arm: arm_weights(config, arm) for arm in evaluate.arms}
    tokenizer = load_tokenizer(
        weights[evaluate.arms[-1]].model, trust_remote_code=config.model.trust_remote_code
    )
    limit = max(decoding.max_tokens or evaluate.max_new_tokens for decoding in evaluate.decodings)
    ids = {prompt.id: tuple(prompt_ids(tokenizer, prompt.messages)) for prompt in prompts}
    room = engine(config).max_model_len
    fitting = [p for p in prompts if len(ids[p.id]) + limit <= room]
    if not fitting:
        raise DataError(f"no held-out prompt fits max_model_len {room}")
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


def _take_over(
    config: Config, requests: dict[str, list[Request]], journals: Journals[Generation]
) -> dict[str, int]:
    """Put into the journal what the sweep's other points have generated with the same weights,
    which is counted for the manifest."""
    if config.run.point is None:
        return {}
    wanted = {request.id for group in requests.values() for request in group}
    known = known_answers(config, inputs(config), evaluations(config))
    known = [answer for answer in known if _name(answer) in wanted]
    journals.own.append(answer for answer in known if _name(answer) not in journals)
    journals.refresh()
    if known:
        say(f"evaluate: {len(known)} answers are another point's, with the same weights")
    return {"taken_over": len(known)}


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


def _judge(
    config: Config, prompts: list[Prompt], answers: Answers, out: PhaseDirectory
) -> tuple[list[Verdict] | None, dict[str, Any]]:
    """Verdicts on dpo against sft at the first decoding, asked in both orders, and who gave
    them at what cost."""
    evaluate = _section(config)
    if evaluate.judge is None or not {"sft", "dpo"} <= set(evaluate.arms):
        return None, {"judge": None}
    judge, ledger = build_judge(evaluate.judge, out.path), open_ledger(evaluate.judge)
    labels = run_root(config) / "judge" / "manifest.json"
    if labels.exists() and read_json(labels).get("judge") == judge.identity:
        warn("the judge that labelled the training pairs also evaluates: read its row with care")
    contests = [
        Contest(p, "dpo", "sft", answers["dpo", 0, p.id].text, answers["sft", 0, p.id].text)
        for p in prompts
    ]
    judge.check()
    verdicts = ask(judge, ledger, contests, out, config, name="evaluate: judge").verdicts
    write_records(out.path / "verdicts.jsonl", verdicts)
    return verdicts, {"judge": judge.identity, "spend": ledger.figures()}


def _judge_scores(
    config: Config, prompts: list[Prompt], answers: Answers, out: PhaseDirectory
) -> tuple[list[Score], list[dict[str, Any]]]:
    """What the judges of single answers give every arm at the first decoding; who they are, what
    they cost, and what they have not scored, by reason."""
    scores: list[Score] = []
    spent: list[dict[str, Any]] = []
    for number, wanted in enumerate(_section(config).judge_scores):
        folder = out.path / score_name(number)
        judge, ledger = build_scorer(wanted.judge, folder), open_ledger(wanted.judge)
        judge.check()
        asked = [
            alone(prompt, arm, answers[arm, 0, prompt.id].text)
            for prompt in prompts
            for arm in _section(config).arms
        ]
        ballots = ask_for_scores(judge, ledger, asked, out, config, name=wanted.label)
        scores += [
            Score(
                prompt_id=ballot.prompt_id,
                arm=ballot.first,
                decoding=0,
                metric=score_name(number),
                value=ballot.score,
            )
            for ballot in ballots
            if ballot.score is not None
        ]
        missing = Counter(ballot.outcome for ballot in ballots if ballot.score is None)
        spent.append(
            {
                "label": wanted.label,
                "judge": judge.identity,
                "spend": ledger.figures(),
                "missing": dict(missing),
            }
        )
    return scores, spent


def score_name(number: int) -> str:
    """The metric of the `number`-th of `evaluate.judge_scores`."""
    return f"judge_score-{number}"
