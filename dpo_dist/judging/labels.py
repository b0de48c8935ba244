"""From verdicts to labels: which comparisons are kept, and which answer is chosen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_dist.config import JudgeSection
from dpo_dist.data.hygiene import looks_like_refusal
from dpo_dist.errors import DataError
from dpo_dist.judging.audit import length_band
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import BallotSummary, Judged
from dpo_dist.storage.records import ComparisonId, PreferencePair
from dpo_dist.system.console import counted


@dataclass(frozen=True)
class Label:
    """A comparison with its chosen answer. `inconsistent`: the two orders disagree.
    `contradicting`: the orders preferred different answers, so that the choice is random; half of
    these labels are wrong."""

    comparison: Comparison
    first_is_chosen: bool
    inconsistent: bool = False
    contradicting: bool = False

    @property
    def ordered(self) -> Comparison:
        """The comparison with the chosen answer first."""
        return self.comparison if self.first_is_chosen else self.comparison.swap()

    @property
    def texts(self) -> tuple[str, str]:
        """The texts (chosen, rejected)."""
        return self.ordered.first_text, self.ordered.second_text

    def pair(self) -> PreferencePair:
        """The texts as a preference pair."""
        ordered = self.ordered
        return PreferencePair(
            prompt_id=ordered.prompt.id,
            prompt=ordered.prompt.messages,
            chosen=ordered.first_text,
            rejected=ordered.second_text,
        )


def labels_of(
    comparisons: Sequence[Comparison],
    judged: Judged,
    settings: JudgeSection,
    seed: int,
    dropped: Counter[str],
) -> list[Label]:
    """The labels that `settings` keep, in the comparisons' order; the others are counted in
    `dropped`. Raises `DataError` if balancing leaves none."""
    labels = _labels(comparisons, judged, settings, seed, dropped)
    if settings.pairs == "best_vs_worst":
        best = best_vs_worst(labels, seed)
        if len(best) < len(labels):
            dropped["not_best_vs_worst"] = len(labels) - len(best)
        labels = best
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
    comparisons: Sequence[Comparison],
    judged: Judged,
    settings: JudgeSection,
    seed: int,
    dropped: Counter[str],
) -> list[Label]:
    """The labels of all verdicts that give one; the others are counted in `dropped`."""
    orders: dict[ComparisonId, list[BallotSummary]] = defaultdict(list)
    for ballot in judged.ballots:
        if ballot.repeat == 0:
            orders[ballot.comparison_id].append(ballot)
    labels: list[Label] = []
    for comparison, verdict in zip(comparisons, judged.verdicts, strict=True):
        if verdict.outcome == "preferred":
            label = Label(comparison, verdict.preferred == comparison.first)
        elif verdict.outcome == "inconsistent" and settings.inconsistent == "keep":
            label = _inconsistent_label(comparison, orders[comparison.id], seed)
        else:
            dropped[verdict.outcome] += 1
            continue
        chosen, rejected = label.texts
        if looks_like_refusal(chosen) and not looks_like_refusal(rejected):
            dropped["refusal_chosen"] += 1
        else:
            labels.append(label)
    return labels


def _inconsistent_label(
    comparison: Comparison, ballots: Sequence[BallotSummary], seed: int
) -> Label:
    """The label of an inconsistent comparison: the answer that only one order preferred, or a
    random one if the orders preferred different answers."""
    preferred = {ballot.preferred for ballot in ballots} - {None}
    contradicting = len(preferred) > 1
    first_is_chosen = comparison.first in preferred
    if contradicting:
        first_is_chosen = _drawn(comparison, "coin", seed) % 2 == 0
    return Label(comparison, first_is_chosen, inconsistent=True, contradicting=contradicting)


def best_vs_worst(labels: Sequence[Label], seed: int) -> list[Label]:
    """One label per prompt: the one whose answers differ most in their Copeland score.

    An answer's score is its wins minus its losses among the prompt's consistent labels. An
    inconsistent label is taken only if the prompt has no other; ties are drawn. The differences
    (chosen - rejected) of a prompt add up to the sum of its squared scores, so the largest is never
    negative, and 0 only if every answer wins as often as it loses.
    """
    by_prompt: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_prompt[label.comparison.prompt.id].append(label)
    kept = {_largest_difference(group, seed).comparison.id for group in by_prompt.values()}
    return [label for label in labels if label.comparison.id in kept]


def _largest_difference(labels: Sequence[Label], seed: int) -> Label:
    scores: Counter[str] = Counter()
    for label in labels:
        if not label.inconsistent:
            scores[label.ordered.first] += 1
            scores[label.ordered.second] -= 1

    def rank(label: Label) -> tuple[bool, int, int]:
        difference = scores[label.ordered.first] - scores[label.ordered.second]
        return not label.inconsistent, difference, _drawn(label.comparison, "best_vs_worst", seed)

    return max(labels, key=rank)


def balanced(labels: Sequence[Label], seed: int) -> list[Label]:
    """As many labels for the first slot as for the second, in every length band (two slots only).
    The labels to drop are drawn by the prompt's id, independent of their order."""
    groups: dict[tuple[str, bool], list[Label]] = defaultdict(list)
    for label in labels:
        groups[length_band(label.comparison), label.first_is_chosen].append(label)
    kept: set[ComparisonId] = set()
    for (band, first_is_chosen), group in groups.items():
        room = min(len(group), len(groups.get((band, not first_is_chosen), [])))
        group.sort(key=lambda label: _drawn(label.comparison, "balance", seed))
        kept |= {label.comparison.id for label in group[:room]}
    return [label for label in labels if label.comparison.id in kept]


def fitting_smoothing(labels: Sequence[Label]) -> float:
    """The `label_smoothing` of the robust loss: the expected share of wrong labels, half of the
    contradicting ones (Chowdhury et al. 2024, arXiv 2403.00409)."""
    return round(0.5 * sum(label.contradicting for label in labels) / len(labels), 3)


def _drawn(comparison: Comparison, what: str, seed: int) -> int:
    return int.from_bytes(comparison.drawn(seed, what)[:8], "big")
