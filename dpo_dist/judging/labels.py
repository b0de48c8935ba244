"""Which of the judged pairs are trained on, and which of their answers is the chosen one."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_dist.config import Judge as JudgeSection
from dpo_dist.data.hygiene import looks_like_refusal
from dpo_dist.errors import DataError
from dpo_dist.judging.audit import length_band
from dpo_dist.judging.ballots import Vote
from dpo_dist.judging.panel import Contest, Judged
from dpo_dist.records import PreferencePair


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
    orders: dict[str, list[Vote]] = defaultdict(list)
    for vote in judged.votes:
        if vote.repeat == 0:
            orders[vote.prompt_id].append(vote)
    labels: list[Label] = []
    for contest, verdict in zip(contests, judged.verdicts, strict=True):
        if verdict.outcome == "preferred":
            label = Label(contest, verdict.preferred == contest.a)
        elif verdict.outcome == "inconsistent" and settings.inconsistent == "keep":
            label = settled(contest, orders[contest.prompt.id], seed)
        else:
            dropped[verdict.outcome] += 1
            continue
        chosen, rejected = label.texts
        if looks_like_refusal(chosen) and not looks_like_refusal(rejected):
            dropped["refusal_chosen"] += 1
        else:
            labels.append(label)
    if settings.balance is None or not labels:
        return labels
    kept = balanced(labels, seed)
    dropped["unbalanced"] += len(labels) - len(kept)
    if not kept:
        raise DataError(
            f"judge.balance: temperature leaves none of the {len(labels)} pairs: in no band of "
            "lengths are both slots chosen. Bring the slots' temperatures closer together, or "
            "set judge.balance: null"
        )
    return kept


def settled(contest: Contest, votes: Sequence[Vote], seed: int) -> Label:
    """An inconsistent contest's label: the only answer that any order preferred, or a coin."""
    preferred = {vote.preferred for vote in votes} - {None}
    contradicting = len(preferred) > 1
    a_is_chosen = (
        _drawn(contest, "coin", seed) % 2 == 0 if contradicting else contest.a in preferred
    )
    return Label(contest, a_is_chosen, inconsistent=True, contradicting=contradicting)


def balanced(labels: Sequence[Label], seed: int) -> list[Label]:
    """The labels without those that let a slot win more often than the other in a band of lengths.

    What is dropped is drawn by the prompt's id, whatever the order.
    """
    groups: dict[tuple[str, bool], list[Label]] = defaultdict(list)
    for label in labels:
        groups[length_band(label.contest), label.a_is_chosen].append(label)
    kept: set[str] = set()
    for (band, a_is_chosen), group in groups.items():
        room = min(len(group), len(groups.get((band, not a_is_chosen), [])))
        group.sort(key=lambda label: _drawn(label.contest, "balance", seed))
        kept |= {label.contest.prompt.id for label in group[:room]}
    return [label for label in labels if label.contest.prompt.id in kept]


def fitting_smoothing(labels: Sequence[Label]) -> float:
    """The `label_smoothing` of the robust loss, the share of labels expected to be wrong: half
    of the contradicting ones (Chowdhury et al. 2024, arXiv 2403.00409)."""
    return round(0.5 * sum(label.contradicting for label in labels) / len(labels), 3)


def _drawn(contest: Contest, what: str, seed: int) -> int:
    drawn = hashlib.sha256(f"{seed}\0{what}\0{contest.prompt.id}".encode()).digest()
    return int.from_bytes(drawn[:8], "big")
