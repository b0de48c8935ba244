"""judge: a judge compares the two candidates of every prompt; its verdicts become pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dpo_dist.artifacts import PhaseDirectory, file_digest, read_records, write_records
from dpo_dist.config import Config, DataSource
from dpo_dist.console import say, warn
from dpo_dist.data.hygiene import why_not_judged
from dpo_dist.data.preferences import JUDGED_FILE, write_pairs
from dpo_dist.data.prompts import content_digest
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import DataError
from dpo_dist.evaluation.statistics import wilson
from dpo_dist.judging.audit import Share, audit
from dpo_dist.judging.canaries import drawn_canaries, own_canaries
from dpo_dist.judging.judge import Judge, build_judge
from dpo_dist.judging.panel import Contest
from dpo_dist.judging.spend import Ledger, open_ledger
from dpo_dist.phases.asking import Agreement, ask
from dpo_dist.phases.canaries import examine, most_requests
from dpo_dist.phases.runs import judge_files, run_root
from dpo_dist.records import Candidate, PreferencePair, Prompt

SECTIONS = ("judge",)
TIE_WARNING = 0.5


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the candidates, and the rubric that the judge follows."""
    assert config.judge is not None
    candidates = run_root(config) / "sample" / "candidates.jsonl"
    if not (candidates.parent / "manifest.json").exists():
        raise DataError(f"{candidates.parent} is not complete: run the phase `sample` first")
    canaries = config.judge.canaries
    return {
        "candidates": file_digest(candidates),
        "judge_files": judge_files(config.judge.judge),
        "canaries": canaries and canaries.path and source_identity(DataSource(path=canaries.path)),
    }


def run(config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Let the judge that the run file names label the candidates."""
    assert config.judge is not None
    judge, ledger = build_judge(config.judge.judge, out.path), open_ledger(config.judge.judge)
    judge.check()
    return label(judge, ledger, config, out)


def label(judge: Judge, ledger: Ledger, config: Config, out: PhaseDirectory) -> dict[str, Any]:
    """Ask for what the journal lacks, reconcile, examine the judge with canaries, and write
    verdicts and preference pairs."""
    assert config.judge is not None
    canaries = config.judge.canaries
    own = own_canaries(canaries.path) if canaries and canaries.path else []
    sample = run_root(config) / "sample"
    prompts = {p.id: p for p in read_records(sample / "prompts.jsonl", Prompt)}
    candidates = list(read_records(sample / "candidates.jsonl", Candidate))
    dropped: Counter[str] = Counter()
    contests = _contests(prompts, candidates, dropped)
    agreement = Agreement()
    announced = f"; then at most {most_requests(canaries, own)} for canaries" if canaries else ""
    judged = ask(
        judge,
        ledger,
        contests,
        out,
        config,
        both_orders=config.judge.both_orders,
        repeat=config.judge.repeat,
        approve=lambda forecast: agreement(forecast + announced),
        name="judge",
    )
    verdicts = judged.verdicts
    write_records(out.path / "verdicts.jsonl", verdicts)

    pairs: list[PreferencePair] = []
    for contest, verdict in zip(contests, verdicts, strict=True):
        if verdict.outcome != "preferred":
            dropped[verdict.outcome] += 1
            continue
        texts = {contest.a: contest.a_text, contest.b: contest.b_text}
        assert verdict.preferred is not None and verdict.other is not None
        pairs.append(
            PreferencePair(
                prompt_id=contest.prompt.id,
                prompt=contest.prompt.messages,
                chosen=texts[verdict.preferred],
                rejected=texts[verdict.other],
            )
        )
    total = len(candidates) // 2
    assert total == len(pairs) + sum(dropped.values()), "the funnel must add up"
    if not pairs:
        raise DataError(f"the judge decided no pair; dropped: {dict(dropped)}")
    if dropped["tie"] > TIE_WARNING * total:
        warn(f"{dropped['tie']} of {total} comparisons are ties")
    audited = _audited(audit(contests, verdicts, judged.ballots))
    card: list[dict[str, Any]] = []
    if canaries:
        drawn = drawn_canaries(pairs, prompts, per_kind=canaries.per_kind, seed=config.run.seed)
        card = examine(judge, ledger, [*drawn, *own], out, config, approve=agreement)
    write_pairs(out.path / JUDGED_FILE, pairs)
    return {
        "counts": {"in": total, "kept": len(pairs), "dropped": dict(sorted(dropped.items()))},
        "judge": judge.identity,
        "spend": ledger.figures(),
        "audit": audited,
        "canaries": card,
    }


def _audited(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """The shares with their intervals, said and, where they are out of range, warned of."""
    found = []
    for share in shares:
        estimate = wilson(share.hits, share.n)
        suspicious = False
        if estimate.low is not None and estimate.high is not None:
            suspicious = estimate.high < share.healthy[0] or estimate.low > share.healthy[1]
            say(
                f"{share.label}: {share.hits} of {share.n} ({100 * share.hits / share.n:.0f} %, "
                f"95 % interval {100 * estimate.low:.0f}-{100 * estimate.high:.0f} %)"
            )
        if suspicious:
            warn(f"{share.label}: outside of what is expected; {share.remedy}")
        found.append(
            {
                "name": share.name,
                "label": share.label,
                **asdict(estimate),
                "remedy": share.remedy if suspicious else "",
            }
        )
    return found


def _contests(
    prompts: dict[str, Prompt], candidates: list[Candidate], dropped: Counter[str]
) -> list[Contest]:
    """The pairs worth a judgement, one a prompt.

    A cut-off answer is not worth one: as `chosen` it would teach the model to stop mid-sentence,
    and its end token would be one that was never sampled.
    """
    contests: list[Contest] = []
    asked: set[str] = set()
    for a, b in zip(candidates[::2], candidates[1::2], strict=True):
        assert (a.prompt_id, a.slot, b.slot) == (b.prompt_id, 0, 1)
        prompt = prompts[a.prompt_id]
        digest = content_digest(prompt.messages)
        if digest in asked:
            dropped["duplicate_prompt"] += 1
        elif "length" in (a.finish_reason, b.finish_reason):
            dropped["candidate_cut_off"] += 1
        elif reason := why_not_judged(a.text, b.text):
            dropped[reason] += 1
        else:
            asked.add(digest)
            names = (f"slot-{a.slot}", f"slot-{b.slot}")
            contests.append(Contest(prompt, *names, a.text, b.text))
    return contests
