"""The judges of the evaluate phase (pairs of arms, single answers) and its benchmarks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpo_dist.config import Evaluate, required
from dpo_dist.evaluation.benchmarks import BenchmarkResult, benchmark_rows, run_benchmarks
from dpo_dist.evaluation.comparison import Pair, Points, pairs_of
from dpo_dist.evaluation.scores import HEADLINE
from dpo_dist.judging.judge import Comparison, single_answer
from dpo_dist.judging.spend import Spend
from dpo_dist.phases.asking import JudgeSession
from dpo_dist.runs.arms import arms_of
from dpo_dist.runs.manifests import JudgeManifest, ScorerSpend
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import MANIFEST, PhaseDirectory, write_records
from dpo_dist.storage.figures import Figures, read_figures, write_figures
from dpo_dist.storage.records import Generation, Prompt, Score, Verdict
from dpo_dist.system.console import say, warn

Answers = Mapping[tuple[str, int, str], Generation]  # by (arm, decoding, prompt id)


@dataclass(frozen=True)
class PairVerdicts:
    """The verdicts by pair of arms, the judge's identity and its cost; all None without a judge."""

    verdicts: Mapping[Pair, Sequence[Verdict]] | None = None
    judge: str | None = None
    spend: Spend | None = None


class ArmBenchmarks(Figures):
    """The content of benchmarks-ARM.json."""

    results: tuple[BenchmarkResult, ...]


def judge_pairs(
    run: Run, prompts: Sequence[Prompt], answers: Answers, out: PhaseDirectory
) -> PairVerdicts:
    """Compare the arms' answers at the first decoding, in both orders."""
    section = required(run.config.evaluate).judge
    pairs = pairs_to_compare(run)
    if section is None or not pairs:
        return PairVerdicts()
    session = JudgeSession.to_compare(section, out, run)
    identity = session.judge.identity
    labelling = run.directory("judge") / MANIFEST
    if labelling.exists() and read_figures(labelling, JudgeManifest).judge == identity:
        warn(
            "the judge that labelled the training pairs is also the evaluation judge: read its "
            "row with caution"
        )
    comparisons = [
        Comparison(p, a, b, answers[a, 0, p.id].text, answers[b, 0, p.id].text, number)
        for number, (a, b) in enumerate(pairs)
        for p in prompts
    ]
    judged = session.compare(comparisons, name="evaluate: judge").verdicts
    write_records(out.path / "verdicts.jsonl", judged)
    verdicts: dict[Pair, list[Verdict]] = defaultdict(list)
    for comparison, verdict in zip(comparisons, judged, strict=True):
        verdicts[comparison.first, comparison.second].append(verdict)
    return PairVerdicts(dict(verdicts), identity, session.ledger.spend())


def pairs_to_compare(run: Run) -> list[Pair]:
    """The pairs of arms. The headline is first, so that its orders are drawn independently of the
    other pairs. Arms that differ only in the name are not compared: without an SFT model, "sft" is
    "base"."""
    evaluate, arms = required(run.config.evaluate), arms_of(run)
    wanted = [(a, b) for a, b in pairs_of(list(arms)) if not arms[a].is_same(arms[b])]
    if evaluate.pairwise == "headline":
        return [pair for pair in wanted if pair == HEADLINE]
    return sorted(wanted, key=lambda pair: pair != HEADLINE)


def judge_scores(
    run: Run, prompts: Sequence[Prompt], answers: Answers, out: PhaseDirectory
) -> tuple[list[Score], list[ScorerSpend]]:
    """Let the judges of `evaluate.judge_scores` score all arms' answers at the first decoding;
    returns the scores, and the cost of each judge."""
    evaluate = required(run.config.evaluate)
    scores: list[Score] = []
    spends: list[ScorerSpend] = []
    asked = [
        single_answer(prompt, arm, answers[arm, 0, prompt.id].text)
        for prompt in prompts
        for arm in evaluate.named_arms
    ]
    for row, scorer in zip(score_rows(evaluate), evaluate.judge_scores, strict=True):
        session = JudgeSession.to_score(scorer.judge, out.path / row.key, out, run)
        ballots = session.score(asked, name=scorer.label)
        scores += [
            Score(prompt_id=b.prompt_id, arm=b.first, decoding=0, metric=row.key, value=b.score)
            for b in ballots
            if b.score is not None
        ]
        spend = ScorerSpend(
            label=scorer.label,
            judge=session.judge.identity,
            spend=session.ledger.spend(),
            missing=dict(Counter(b.outcome for b in ballots if b.score is None)),
        )
        spends.append(spend)
    return scores, spends


def score_rows(evaluate: Evaluate) -> list[Points]:
    """The rows of `evaluate.judge_scores` in the comparison."""
    return [Points(f"judge_score-{n}", s.label) for n, s in enumerate(evaluate.judge_scores)]


def arm_benchmarks(run: Run, out: PhaseDirectory) -> tuple[list[Points], list[Score]]:
    """The results of all arms on `evaluate.benchmarks`: (metrics, scores); empty without that
    section. Each arm's results are saved in `benchmarks-ARM.json`."""
    config, section = run.config, required(run.config.evaluate).benchmarks
    if section is None:
        return [], []
    arms: dict[str, Sequence[BenchmarkResult]] = {}
    for arm, named in required(config.evaluate).named_arms.items():
        path = out.path / f"benchmarks-{arm}.json"
        if not path.exists():
            say(f"evaluate: benchmarks of arm `{arm}`")
            weights = run.arm_weights(named)
            results = run_benchmarks(
                section,
                weights.model,
                weights.adapter,
                dtype=config.model.dtype,
                seed=config.run.seed,
                trust_remote_code=config.model.trust_remote_code,
            )
            write_figures(path, ArmBenchmarks(results=tuple(results)))
        arms[arm] = read_figures(path, ArmBenchmarks).results
    return benchmark_rows(arms)
