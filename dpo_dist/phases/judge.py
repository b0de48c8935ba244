"""judge: a judge compares the candidates of every prompt in pairs; its verdicts become pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from math import comb
from typing import Any

from dpo_dist.config import BALANCE_OF_TWO, Config, DataSource
from dpo_dist.data.hygiene import why_not_judged
from dpo_dist.data.leakage import overlaps
from dpo_dist.data.preferences import JUDGED_FILE, write_pairs
from dpo_dist.data.prompts import check_disjoint, content_digest
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.intervals import Estimate, wilson
from dpo_dist.judging.audit import Share, audit
from dpo_dist.judging.canaries import drawn_canaries, own_canaries
from dpo_dist.judging.judge import Judge, build_judge
from dpo_dist.judging.labels import Label, fitting_smoothing, labels_of
from dpo_dist.judging.panel import Contest
from dpo_dist.judging.spend import Ledger, open_ledger
from dpo_dist.phases.asking import Agreement, ask
from dpo_dist.phases.canaries import examine, most_requests
from dpo_dist.phases.held_out import held_out_identity, held_out_prompts
from dpo_dist.runs.directories import check_complete, phase_dir
from dpo_dist.runs.inputs import judge_files
from dpo_dist.storage.artifacts import PhaseDirectory, file_digest, read_records, write_records
from dpo_dist.storage.records import Candidate, Prompt
from dpo_dist.system.console import counted, say, warn

SECTIONS = ("judge",)
TIE_WARNING = 0.5


def inputs(config: Config) -> dict[str, Any]:
    """What the phase reads: the candidates, the rubric that the judge follows, and the held-out
    prompts, which may not be trained on."""
    assert config.judge is not None
    candidates = check_complete(config, "sample").with_name("candidates.jsonl")
    canaries = config.judge.canaries
    return {
        "candidates": file_digest(candidates),
        "judge_files": judge_files(config.judge.judge),
        "canaries": canaries and canaries.path and source_identity(DataSource(path=canaries.path)),
        "held_out": held_out_identity(config),
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
    section = config.judge
    assert section is not None
    canaries = section.canaries
    own = own_canaries(canaries.path) if canaries and canaries.path else []
    agreement = Agreement()
    announced = f"; plus up to {most_requests(canaries, own)} for canaries" if canaries else ""
    dropped: Counter[str] = Counter()
    contests = _contests(config, dropped)
    total = len(contests) + sum(dropped.values())
    judged = ask(
        judge,
        ledger,
        contests,
        out,
        config,
        both_orders=section.both_orders,
        repeat=section.repeat,
        approve=lambda forecast: agreement(forecast + announced),
        name="judge",
    )
    write_records(out.path / "verdicts.jsonl", judged.verdicts)
    audited = _audited(audit(contests, judged.verdicts, judged.votes))

    labels = labels_of(contests, judged, section, config.run.seed, dropped)
    assert total == len(labels) + sum(dropped.values()), "the funnel must add up"
    if not labels:
        raise DataError(f"the judge decided no pairs; dropped: {dict(dropped)}")
    if dropped["tie"] > TIE_WARNING * total:
        warn(f"{dropped['tie']} of {counted(total, 'comparison')} tied")
    card: list[dict[str, Any]] = []
    if canaries:
        drawn = drawn_canaries(
            [label.pair() for label in labels if not label.inconsistent],
            {contest.prompt.id: contest.prompt for contest in contests},
            per_kind=canaries.per_kind,
            seed=config.run.seed,
        )
        card = examine(judge, ledger, [*drawn, *own], out, config, approve=agreement)
    write_pairs(out.path / JUDGED_FILE, (label.pair() for label in labels))
    refusals = Counter(v.category for v in judged.votes if v.outcome == "refusal")
    return {
        "counts": {
            "in": total,
            "kept": len(labels),
            "dropped": dict(sorted(dropped.items())),
            **_kept_inconsistent(config, labels),
        },
        "judge": judge.identity,
        "spend": ledger.figures(),
        "refusals": dict(refusals),
        "audit": audited,
        "canaries": card,
    }


def _kept_inconsistent(config: Config, labels: Sequence[Label]) -> dict[str, int]:
    """How many of the kept pairs are inconsistent, for the counts; and what they ask of the
    training is said."""
    assert config.judge is not None
    if config.judge.inconsistent == "drop":
        return {}
    kept = sum(label.inconsistent for label in labels)
    say(
        f"{kept} of {len(labels)} pairs are inconsistent and kept; train.label_smoothing: "
        f"{fitting_smoothing(labels)} fits them"
    )
    if config.train is not None and "robust" not in config.train.loss:
        warn(
            "judge.inconsistent: keep makes noisy labels, which only train.loss: robust accounts "
            "for"
        )
    return {"kept_inconsistent": kept}


def _audited(shares: Sequence[Share]) -> list[dict[str, Any]]:
    """The shares with their intervals, said and, where they are out of range, warned of."""
    found = []
    for share in shares:
        estimate = _estimate(share)
        suspicious = False
        if estimate.low is not None and estimate.high is not None:
            suspicious = estimate.high < share.healthy[0] or estimate.low > share.healthy[1]
            say(
                f"{share.label}: {share.hits} of {share.n} ({100 * share.hits / share.n:.0f} %, "
                f"95 % interval {100 * estimate.low:.0f}-{100 * estimate.high:.0f} %)"
            )
        if suspicious:
            warn(f"{share.label}: outside the expected range; {share.remedy}")
        found.append(
            {
                "name": share.name,
                "label": share.label,
                **asdict(estimate),
                "remedy": share.remedy if suspicious else "",
            }
        )
    return found


def _estimate(share: Share) -> Estimate:
    """The share of all values, with the interval of as many as are independent."""
    effect = share.design_effect
    independent = wilson(round(share.hits / effect), round(share.n / effect))
    return replace(wilson(share.hits, share.n), low=independent.low, high=independent.high)


def _contests(config: Config, dropped: Counter[str]) -> list[Contest]:
    """The pairs of slots worth a judgement; the others are counted as `dropped`.

    A cut-off answer is not worth one: as `chosen` it would teach the model to stop mid-sentence,
    and its end token would be one that was never sampled. Nor are the prompts of which the
    evaluation asks much: they are not to be trained on.
    """
    sample = phase_dir(config, "sample")
    prompts = {p.id: p for p in read_records(sample / "prompts.jsonl", Prompt)}
    given_away = _given_away(prompts, held_out_prompts(config))
    # Read one by one: the candidates' token ids take many times the memory of their texts.
    candidates = read_records(sample / "candidates.jsonl", Candidate)
    contests: list[Contest] = []
    asked: set[str] = set()
    for prompt_id, group in groupby(candidates, key=lambda candidate: candidate.prompt_id):
        answers = list(group)
        assert [answer.slot for answer in answers] == list(range(len(answers)))
        _check_balance(config, len(answers))
        prompt, pairs = prompts[prompt_id], comb(len(answers), 2)
        digest = content_digest(prompt.messages)
        if digest in asked:
            dropped["duplicate_prompt"] += pairs
        elif prompt_id in given_away:
            dropped["evaluation_overlap"] += pairs
        elif found := _pairs_of(prompt, answers, dropped):
            asked.add(digest)
            contests += found
    return contests


def _pairs_of(prompt: Prompt, answers: Sequence[Candidate], dropped: Counter[str]) -> list[Contest]:
    """The pairs of one prompt's answers that are worth a judgement."""
    contests: list[Contest] = []
    compared: set[frozenset[str]] = set()
    # The later slot decides the number, so that it stays the same when a slot is added.
    pairs = ((a, b) for second, b in enumerate(answers) for a in answers[:second])
    for number, (a, b) in enumerate(pairs):
        texts = frozenset((a.text.strip(), b.text.strip()))
        if "length" in (a.finish_reason, b.finish_reason):
            dropped["candidate_cut_off"] += 1
        elif reason := why_not_judged(a.text, b.text):
            dropped[reason] += 1
        elif texts in compared:
            dropped["same_comparison"] += 1
        else:
            compared.add(texts)
            names = (f"slot-{a.slot}", f"slot-{b.slot}")
            contests.append(Contest(prompt, *names, a.text, b.text, number))
    return contests


def _check_balance(config: Config, slots: int) -> None:
    """What the run file's own slots show has been refused before; here are those on disk."""
    assert config.judge is not None
    if slots > 2 and config.judge.balance is not None:
        raise ConfigError(BALANCE_OF_TWO.format(slots))


def _given_away(prompts: dict[str, Prompt], held_out: list[Prompt]) -> set[str]:
    """The ids of the prompts that overlap with held-out ones. Raises `DataError` for one that is
    held out itself."""
    check_disjoint(list(prompts.values()), held_out)
    found = overlaps([p.messages for p in prompts.values()], [p.messages for p in held_out])
    return {name for name, overlap in zip(prompts, found, strict=True) if overlap}
