"""What judges say of the arms' answers at the first decoding: pairs of arms, and single answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_dist.config import Config, required
from dpo_dist.evaluation.comparison import HEADLINE, Pair, pairs_of
from dpo_dist.judging.judge import alone, build_judge, build_scorer
from dpo_dist.judging.panel import Contest
from dpo_dist.judging.spend import open_ledger
from dpo_dist.phases.asking import ask, ask_for_scores
from dpo_dist.runs.directories import phase_dir
from dpo_dist.runs.weights import Weights, arm_weights
from dpo_dist.storage.artifacts import MANIFEST, PhaseDirectory, read_json, write_records
from dpo_dist.storage.records import Generation, Prompt, Score, Verdict
from dpo_dist.system.console import warn

Answers = Mapping[tuple[str, int, str], Generation]  # by arm, decoding and prompt id


def judge_pairs(
    config: Config, prompts: Sequence[Prompt], answers: Answers, out: PhaseDirectory
) -> tuple[dict[Pair, list[Verdict]] | None, dict[str, Any]]:
    """Verdicts by pair of arms, asked in both orders, and who gave them at what cost."""
    evaluate = required(config.evaluate)
    pairs = pairs_to_compare(config)
    if evaluate.judge is None or not pairs:
        return None, {"judge": None}
    judge, ledger = build_judge(evaluate.judge, out.path), open_ledger(evaluate.judge)
    labels = phase_dir(config, "judge") / MANIFEST
    if labels.exists() and read_json(labels).get("judge") == judge.identity:
        warn(
            "the judge that labelled the training pairs is also the evaluation judge: read its "
            "row with caution"
        )
    contests = [
        Contest(p, a, b, answers[a, 0, p.id].text, answers[b, 0, p.id].text, number)
        for number, (a, b) in enumerate(pairs)
        for p in prompts
    ]
    judge.check()
    judged = ask(judge, ledger, contests, out, config, name="evaluate: judge").verdicts
    write_records(out.path / "verdicts.jsonl", judged)
    verdicts: dict[Pair, list[Verdict]] = defaultdict(list)
    for contest, verdict in zip(contests, judged, strict=True):
        verdicts[contest.a, contest.b].append(verdict)
    return dict(verdicts), {"judge": judge.identity, "spend": ledger.figures()}


def pairs_to_compare(config: Config) -> list[Pair]:
    """The headline first: its contests draw their orders as when it was the only pair. Without an
    SFT model "sft" and "base" are one model, and no judge is paid for comparing it with itself."""
    evaluate = required(config.evaluate)
    weights: dict[str, Weights] = {arm: arm_weights(config, arm) for arm in evaluate.arms}
    wanted = [(a, b) for a, b in pairs_of(evaluate.arms) if weights[a] != weights[b]]
    if evaluate.pairwise == "headline":
        return [pair for pair in wanted if pair == HEADLINE]
    return sorted(wanted, key=lambda pair: pair != HEADLINE)


def judge_scores(
    config: Config, prompts: Sequence[Prompt], answers: Answers, out: PhaseDirectory
) -> tuple[list[Score], list[dict[str, Any]]]:
    """What the judges of single answers give every arm at the first decoding; who they are, what
    they cost, and what they have not scored, by reason."""
    scores: list[Score] = []
    spent: list[dict[str, Any]] = []
    for number, wanted in enumerate(required(config.evaluate).judge_scores):
        folder = out.path / score_name(number)
        judge, ledger = build_scorer(wanted.judge, folder), open_ledger(wanted.judge)
        judge.check()
        asked = [
            alone(prompt, arm, answers[arm, 0, prompt.id].text)
            for prompt in prompts
            for arm in required(config.evaluate).arms
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
