"""judge: a judge compares the candidates of every prompt; its verdicts become preference pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import comb, nan

from pydantic import JsonValue

from dpo_dist.config import BALANCE_OF_TWO, DataSource, required
from dpo_dist.data.hygiene import drop_reason, encodable
from dpo_dist.data.leakage import overlaps
from dpo_dist.data.preferences import JUDGED_FILE, packed, write_pairs
from dpo_dist.data.prompts import check_disjoint, content_digest
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.judging.audit import AuditShare, audit
from dpo_dist.judging.canaries import CanaryRow, drawn_canaries, own_canaries
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.labels import Label, fitting_smoothing, labels_of
from dpo_dist.phases.asking import ApproveOnce, JudgeSession, examine, most_canary_requests
from dpo_dist.runs.manifests import JudgeResult
from dpo_dist.runs.run import Run
from dpo_dist.runs.weights import resource_digests
from dpo_dist.storage.artifacts import PhaseDirectory, file_digest, read_records, write_records
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Candidate, PreferencePair, Prompt, Sampled
from dpo_dist.system.console import counted, say, warn

TIE_WARNING = 0.5


class JudgePhase:
    """Labels the candidates with the run file's judge."""

    name = "judge"
    sections = ("judge",)

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The candidates, the judge's files and canaries, and the held-out prompts, which must not
        be trained on."""
        section = required(run.config.judge)
        own = section.canaries.path if section.canaries is not None else None
        return {
            "candidates": file_digest(run.require("sample") / "candidates.jsonl"),
            "judge_files": resource_digests([section.judge]),
            "canaries": source_identity(DataSource(path=own)) if own else None,
            "held_out": run.held_out_identity(),
        }

    def run(self, run: Run, out: PhaseDirectory) -> JudgeResult:
        return label(JudgeSession.to_compare(required(run.config.judge).judge, out, run))


def label(session: JudgeSession) -> JudgeResult:
    """Ask the judge for the missing ballots, test it with canaries, and write verdicts and
    preference pairs."""
    run, out = session.run, session.out
    section, seed = required(run.config.judge), run.config.run.seed
    settings, approve = section.canaries, ApproveOnce()
    own = own_canaries(settings.path) if settings and settings.path else []
    announced = (
        f"; plus up to {most_canary_requests(settings, own)} for canaries" if settings else ""
    )
    dropped: Counter[str] = Counter()
    comparisons = _comparisons(run, dropped)
    total = len(comparisons) + sum(dropped.values())
    judged = session.compare(
        comparisons,
        both_orders=section.both_orders,
        repeat=section.repeat,
        approve=lambda estimate: approve(estimate + announced),
        name="judge",
    )
    write_records(out.path / "verdicts.jsonl", judged.verdicts)
    audited = [share.measured() for share in audit(comparisons, judged.verdicts, judged.ballots)]
    for share in audited:
        _print_share(share)

    labels = labels_of(comparisons, judged, section, seed, dropped)
    assert total == len(labels) + sum(dropped.values()), "the funnel must add up"
    if not labels:
        raise DataError(f"the judge decided no pairs; dropped: {dict(dropped)}")
    if dropped["tie"] > TIE_WARNING * total:
        warn(f"{dropped['tie']} of {counted(total, 'comparison')} tied")
    canaries: list[CanaryRow] = []
    if settings:
        drawn = drawn_canaries(
            [label.pair() for label in labels if not label.inconsistent],
            {comparison.prompt.id: comparison.prompt for comparison in comparisons},
            per_kind=settings.per_kind,
            seed=seed,
        )
        canaries = examine(session, [*drawn, *own], settings, approve=approve)
    write_pairs(out.path / JUDGED_FILE, _pairs(run, labels))
    refusals = Counter(b.category for b in judged.ballots if b.outcome == "refusal")
    return JudgeResult(
        counts=Counts(
            received=total,
            kept=len(labels),
            dropped=dict(sorted(dropped.items())),
            kept_inconsistent=_kept_inconsistent(run, labels),
        ),
        judge=session.judge.identity,
        spend=session.ledger.spend(),
        refusals=dict(refusals),
        audit=tuple(audited),
        canaries=tuple(canaries),
    )


def _kept_inconsistent(run: Run, labels: Sequence[Label]) -> int | None:
    """Print and return how many of the kept pairs are inconsistent; None if they are dropped."""
    if required(run.config.judge).inconsistent == "drop":
        return None
    kept = sum(label.inconsistent for label in labels)
    say(
        f"{kept} of {len(labels)} pairs are inconsistent and kept; the matching "
        f"train.label_smoothing is {fitting_smoothing(labels)}"
    )
    if run.config.train is not None and "robust" not in run.config.train.loss:
        warn("judge.inconsistent: keep gives noisy labels; only train.loss: robust handles them")
    return kept


def _print_share(share: AuditShare) -> None:
    """Print a share of the label audit, with a warning if it is outside its range."""
    if share.mean is None or share.low is None or share.high is None:
        return
    say(
        f"{share.label}: {round(share.mean * share.n)} of {share.n} ({100 * share.mean:.0f} %, "
        f"95 % interval {100 * share.low:.0f}-{100 * share.high:.0f} %)"
    )
    if share.remedy:
        warn(f"{share.label}: outside the expected range; {share.remedy}")


def _comparisons(run: Run, dropped: Counter[str]) -> list[Comparison]:
    """The pairs of candidates to compare; the others are counted in `dropped`.

    Cut-off answers are dropped: as `chosen` they would teach the model to stop mid-sentence, with
    an end token that was never sampled. So are prompts that overlap with the evaluation's, which
    must not be trained on. Raises `DataError` for a prompt that is itself held out.
    """
    sample = run.directory("sample")
    prompts = {p.id: p for p in read_records(sample / "prompts.jsonl", Prompt)}
    held_out = run.held_out_prompts()
    check_disjoint(list(prompts.values()), held_out)
    found = overlaps([p.messages for p in prompts.values()], [p.messages for p in held_out])
    leaked = {name for name, overlap in zip(prompts, found, strict=True) if overlap}
    section = required(run.config.judge)
    comparisons: list[Comparison] = []
    asked: set[str] = set()
    for prompt_id, answers in _candidates(run):
        assert [answer.slot for answer in answers] == list(range(len(answers)))
        # The run file's slots were checked before; these are the slots on disk.
        if len(answers) > 2 and section.balance is not None:
            raise ConfigError(BALANCE_OF_TWO.format(len(answers)))
        prompt, pairs = prompts[prompt_id], comb(len(answers), 2)
        digest = content_digest(prompt.messages)
        if digest in asked:
            dropped["duplicate_prompt"] += pairs
        elif prompt_id in leaked:
            dropped["evaluation_overlap"] += pairs
        elif new := _comparisons_of(prompt, answers, dropped, show_thinking=section.show_thinking):
            asked.add(digest)
            comparisons += new
    return comparisons


def _comparisons_of(
    prompt: Prompt,
    answers: Sequence[Candidate],
    dropped: Counter[str],
    *,
    show_thinking: bool = False,
) -> list[Comparison]:
    """The pairs of one prompt's candidates to compare."""
    comparisons: list[Comparison] = []
    compared: set[frozenset[str]] = set()
    # Ordered by the later slot, so that a pair keeps its number if a slot is added.
    pairs = ((a, b) for second, b in enumerate(answers) for a in answers[:second])
    for number, (a, b) in enumerate(pairs):
        texts = frozenset((a.text.strip(), b.text.strip()))
        if "length" in (a.finish_reason, b.finish_reason):
            dropped["candidate_cut_off"] += 1
        elif reason := drop_reason(a.text, b.text):
            dropped[reason] += 1
        elif show_thinking and not encodable(a.thought + b.thought):
            dropped["unencodable"] += 1
        elif texts in compared:
            dropped["same_comparison"] += 1
        else:
            compared.add(texts)
            first, second = f"slot-{a.slot}", f"slot-{b.slot}"
            one, two = (_with_thought(x) if show_thinking else x.text for x in (a, b))
            comparisons.append(Comparison(prompt, first, second, one, two, number))
    return comparisons


def _with_thought(answer: Candidate) -> str:
    if not answer.thought:
        return answer.text
    return f"<think>\n{answer.thought}\n</think>\n\n{answer.text}"


def _candidates(run: Run) -> Iterator[tuple[str, list[Candidate]]]:
    """(prompt id, its candidates), prompt by prompt, since token ids take many times the memory of
    the texts."""
    candidates = read_records(run.directory("sample") / "candidates.jsonl", Candidate)
    for prompt_id, group in groupby(candidates, key=lambda candidate: candidate.prompt_id):
        yield prompt_id, list(group)


def _pairs(run: Run, labels: Sequence[Label]) -> Iterator[PreferencePair]:
    """The labels' pairs with the tokens that were sampled, in the order of the candidates."""
    by_prompt: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_prompt[label.comparison.prompt.id].append(label)
    for prompt_id, answers in _candidates(run):
        by_name = {f"slot-{answer.slot}": answer for answer in answers}
        prompt = next((answer.prompt_ids for answer in answers if _plain(answer)), ())
        for label in by_prompt.get(prompt_id, ()):
            chosen, rejected = (by_name[n] for n in (label.ordered.first, label.ordered.second))
            yield label.pair().model_copy(
                update={
                    "chosen": chosen.text,
                    "rejected": rejected.text,
                    "sampled": _sampled(prompt, chosen, rejected),
                }
            )


def _sampled(prompt: Sequence[int], chosen: Candidate, rejected: Candidate) -> Sampled | None:
    """The tokens of a pair; None if they are unknown, as those of planted answers."""
    if not chosen.token_ids or not rejected.token_ids:
        return None
    return Sampled(
        prompt=packed(prompt),
        chosen=packed(chosen.token_ids),
        rejected=packed(rejected.token_ids),
        chosen_log_prob=_log_prob(chosen),
        rejected_log_prob=_log_prob(rejected),
    )


def _plain(candidate: Candidate) -> bool:
    """Whether the slot sampled from the prompt itself, as training does."""
    return candidate.settings.get("system") is None and not candidate.settings.get("few_shot")


def _log_prob(candidate: Candidate) -> float:
    """The engine's log-prob given the prompt itself, or NaN."""
    if candidate.log_prob is None or not _plain(candidate):
        return nan
    return candidate.log_prob
