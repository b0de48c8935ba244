"""Which of the judged pairs are trained on, and which of their answers is the chosen one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_dist.config import JudgeSection
from dpo_dist.data.hygiene import looks_like_refusal
from dpo_dist.errors import DataError
from dpo_dist.judging.audit import length_band
from dpo_dist.judging.ballots import Vote
from dpo_dist.judging.panel import Contest, Judged
from dpo_dist.storage.records import ContestId, PreferencePair
from dpo_dist.system.console import counted


@dataclass(frozen=True)
class Label:
    """A contest with its chosen answer.

    `inconsistent`: the orders do not agree. `contradicting`: each order preferred another answer,
    and a coin decided; half of such labels are wrong.
    """

    contest: Contest
    a_is_chosen: bool
    inconsistent: bool = False
    contradicting: bool = False

    @property
    def chosen(self) -> str:
        return self.contest.a if self.a_is_chosen else self.contest.b

    @property
    def rejected(self) -> str:
        return self.contest.b if self.a_is_chosen else self.contest.a

    @property
    def texts(self) -> tuple[str, str]:
        """(chosen, rejected)"""
        both = (self.contest.a_text, self.contest.b_text)
        return both if self.a_is_chosen else both[::-1]

    def pair(self) -> PreferencePair:
        """What DPO trains on."""
        chosen, rejected = self.texts
        prompt = self.contest.prompt
        return PreferencePair(
            prompt_id=prompt.id, prompt=prompt.messages, chosen=chosen, rejected=rejected
        )


def labels_of(
    contests: Sequence[Contest],
    judged: Judged,
    settings: JudgeSection,
    seed: int,
    dropped: Counter[str],
) -> list[Label]:
    """The labels that `settings` keep, in the contests' order; the others count as `dropped`.

    Raises `DataError` where balancing leaves nothing.
    """
    labels = _labels(contests, judged, settings, seed, dropped)
    if settings.pairs == "best_vs_worst":
        every = len(labels)
        labels = best_vs_worst(labels, seed)
        if every > len(labels):
            dropped["not_best_vs_worst"] = every - len(labels)
    if settings.balance is None or not labels:
        return labels
    kept = balanced(labels, seed)
    dropped["unbalanced"] += len(labels) - len(kept)
    if not kept:
        raise DataError(
            f"judge.balance: temperature leaves none of {counted(len(labels), 'pair')}: no length "
            "band has both slots chosen. Bring the slots' temperatures closer together, or set "
            "judge.balance: null"
        )
    return kept


def _labels(
    contests: Sequence[Contest],
    judged: Judged,
    settings: JudgeSection,
    seed: int,
    dropped: Counter[str],
) -> list[Label]:
    """What has become of every verdict: a label, or one more that is dropped."""
    orders: dict[ContestId, list[Vote]] = defaultdict(list)
    for vote in judged.votes:
        if vote.repeat == 0:
            orders[vote.contest_id].append(vote)
    labels: list[Label] = []
    for contest, verdict in zip(contests, judged.verdicts, strict=True):
        if verdict.outcome == "preferred":
            label = Label(contest, verdict.preferred == contest.a)
        elif verdict.outcome == "inconsistent" and settings.inconsistent == "keep":
            label = settled(contest, orders[contest.id], seed)
        else:
            dropped[verdict.outcome] += 1
            continue
        chosen, rejected = label.texts
        if looks_like_refusal(chosen) and not looks_like_refusal(rejected):
            dropped["refusal_chosen"] += 1
        else:
            labels.append(label)
    return labels


def settled(contest: Contest, votes: Sequence[Vote], seed: int) -> Label:
    """An inconsistent contest's label: the only answer that any order preferred, or a coin."""
    preferred = {vote.preferred for vote in votes} - {None}
    contradicting = len(preferred) > 1
    a_is_chosen = (
        _drawn(contest, "coin", seed) % 2 == 0 if contradicting else contest.a in preferred
    )
    return Label(contest, a_is_chosen, inconsistent=True, contradicting=contradicting)


def best_vs_worst(labels: Sequence[Label], seed: int) -> list[Label]:
    """One label a prompt: the one whose answers differ most in their Copeland score.

    An answer's score is its wins minus its losses among the prompt's labels, apart from
    inconsistent ones; of those one is taken only where the prompt has no other. Equal differences
    are drawn between. The differences of a prompt add up to the squares of its scores: so the
    largest is 0 only where every answer wins as often as it loses, as in a cycle, and never less.
    """
    by_prompt: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_prompt[label.contest.prompt.id].append(label)
    kept = {_widest(group, seed).contest.id for group in by_prompt.values()}
    return [label for label in labels if label.contest.id in kept]


def _widest(labels: Sequence[Label], seed: int) -> Label:
    scores: Counter[str] = Counter()
    for label in labels:
        if not label.inconsistent:
            scores[label.chosen] += 1
            scores[label.rejected] -= 1

    def rank(label: Label) -> tuple[bool, int, int]:
        difference = scores[label.chosen] - scores[label.rejected]
        return not label.inconsistent, difference, _drawn(label.contest, "best_vs_worst", seed)

    return max(labels, key=rank)


def balanced(labels: Sequence[Label], seed: int) -> list[Label]:
    """The labels without those that let a slot win more often than the other in a band of lengths.

    What is dropped is drawn by the prompt's id, whatever the order. The slots are two.
    """
    groups: dict[tuple[str, bool], list[Label]] = defaultdict(list)
    for label in labels:
        groups[length_band(label.contest), label.a_is_chosen].append(label)
    kept: set[ContestId] = set()
    for (band, a_is_chosen), group in groups.items():
        room = min(len(group), len(groups.get((band, not a_is_chosen), [])))
        group.sort(key=lambda label: _drawn(label.contest, "balance", seed))
        kept |= {label.contest.id for label in group[:room]}
    return [label for label in labels if label.contest.id in kept]


def fitting_smoothing(labels: Sequence[Label]) -> float:
    """The `label_smoothing` of the robust loss, the share of labels expected to be wrong: half
    of the contradicting ones (Chowdhury et al. 2024, arXiv 2403.00409)."""
    return round(0.5 * sum(label.contradicting for label in labels) / len(labels), 3)


def _drawn(contest: Contest, what: str, seed: int) -> int:
    return int.from_bytes(contest.drawn(seed, what)[:8], "big")
