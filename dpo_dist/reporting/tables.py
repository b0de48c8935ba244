"""The tables of the report, for the page, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dpo_dist.config import Better, Sampling
from dpo_dist.evaluation.ranking import Ranking
from dpo_dist.evaluation.scores import HEADLINE, ArmDifference, Comparisons, Lengths, MetricRow
from dpo_dist.intervals import LEVEL, Estimate, half_width
from dpo_dist.judging.audit import AuditShare
from dpo_dist.judging.canaries import CanaryRow
from dpo_dist.reporting.figures import TrainingFigures

PREFERRED = "Preferred (judge, pairwise vs SFT)"
EQUAL_LENGTH = "Preferred, at equal lengths"
ABSENT = "–"
REFLECTION = "What DPO did to the model, and what it did not"
CARD_NOTE = (
    "A canary is a comparison with a known right answer, asked in both orders. `failed`: fewer "
    "canaries passed than the run file requires. `accepted`: the same, but the run file allows it."
)
NO_CARD = "The judge was not tested with canaries, so its reliability is unknown."


@dataclass(frozen=True)
class Cell:
    """A figure with its details; `tone` is "better", "worse" or empty."""

    value: str
    detail: str = ""
    tone: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """A table; each row is its label and its cells."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def texts(self) -> list[list[str]]:
        """The headers and rows as texts."""
        return [[*self.headers], *([label, *map(str, cells)] for label, cells in self.rows)]


def comparison_table(scores: Comparisons, decoding: int = 0) -> Table:
    """The scores at one decoding: a row per metric, then the preference. The difference of the
    preference is its difference from 50 %, the win rate of equal models. Without dpo and sft, the
    last arm is compared with the first."""
    a, b = pair = HEADLINE
    difference = "Δ DPO over SFT"
    if not set(pair) <= set(scores.arms) and len(scores.arms) > 1:
        a, b = pair = (scores.arms[-1], scores.arms[0])
        difference = f"Δ {scores.label(a)} over {scores.label(b)}"
    headers = ("Metric", *(scores.label(arm) for arm in scores.arms), difference)
    rows = []
    for row in scores.metrics:
        if row.decoding == decoding:
            cells = [_metric_cell(row, arm) for arm in scores.arms]
            tested = row.delta if pair == HEADLINE else row.difference(a, b)
            p = tested.p_holm if isinstance(tested, ArmDifference) else None
            rows.append((row.label, (*cells, difference_cell(tested, row.unit, row.better, p))))
    preferred = scores.preferred
    if preferred is not None and preferred.decoding == decoding:
        for label, rate in ((PREFERRED, preferred), (EQUAL_LENGTH, preferred.length_controlled)):
            if rate is not None:
                p = preferred.p_holm if rate is preferred else None
                cells = [share_cell(rate) if arm == "dpo" else Cell(ABSENT) for arm in scores.arms]
                delta = difference_cell(_minus_half(rate), "share", "higher", p)
                rows.append((label, (*cells, delta)))
    return Table(headers, tuple(rows))


def score_badge(row: MetricRow, value: float) -> Cell:
    """A metric's value for one answer; a share of 0 or 1 has a tone."""
    if row.unit != "share":
        unit = "" if row.unit == "points" else f" {row.unit}"
        return Cell(f"{value:g}{unit}", row.label)
    shown = {0.0: "✗", 1.0: "✓"}.get(value, f"{value:.2f}")
    tone = ""
    if row.better and value in (0.0, 1.0):
        tone = "better" if (value == 1.0) == (row.better == "higher") else "worse"
    return Cell(shown, row.label, tone)


def audit_table(shares: Sequence[AuditShare]) -> Table:
    """The measured shares of the label audit; a share outside its range has a tone."""
    rows = []
    for share in shares:
        if share.n:
            cell = replace(share_cell(share), tone="worse" if share.remedy else "")
            rows.append((share.label, (cell,)))
    return Table(("Labels", "Share"), tuple(rows))


def canary_table(card: Sequence[CanaryRow]) -> Table:
    """The judge's card: its results on the canaries."""
    tones = {"passed": "better", "failed": "worse", "accepted": "worse"}
    rows = []
    for row in card:
        detail = _interval(row.low, row.high, ".0f", scale=100)
        if row.not_compared:
            detail += f", {row.not_compared} without a comparison"
        passed = Cell(f"{row.passed} of {row.n}", detail)
        rows.append((row.label, (passed, Cell(row.status, "", tones[row.status]))))
    return Table(("Judge", "Canaries passed", "Result"), tuple(rows))


def pairwise_table(scores: Comparisons) -> Table:
    """The verdicts on every compared pair of arms, and the difference that they can detect."""
    rows = []
    for pair in scores.pairwise:
        missing = Cell("none")
        if pair.missing:
            assert pair.worst is not None and pair.best is not None
            bounds = f"{100 * pair.worst:.0f}–{100 * pair.best:.0f} % if all were losses or wins"
            missing = Cell(_reasons(pair.missing), bounds)
        counts = (pair.wins, pair.losses, pair.ties, pair.inconsistent)
        cells = (
            share_cell(pair),
            *(Cell(str(count)) for count in counts),
            missing,
            Cell(ABSENT if pair.detectable is None else f"±{100 * pair.detectable:.0f} pp"),
            Cell(_probability(pair.p_holm) or ABSENT),
        )
        rows.append((f"{scores.label(pair.a)} over {scores.label(pair.b)}", cells))
    headers = ("Pair", "Win rate", "Won", "Lost", "Tied", "Inconsistent", "Missing")
    return Table((*headers, "Detectable", "Sign test"), tuple(rows))


def ranking_table(ranking: Ranking | None, scores: Comparisons) -> Table:
    """The strength of every arm, strongest first; no rows without strengths. `scores` has the names
    of the arms."""
    rows = []
    for arm in ranking.strengths if ranking else ():
        cell = Cell(f"{arm.strength:+z.2f}", _interval(arm.low, arm.high, "+.2f", ", "))
        rows.append((scores.label(arm.arm), (cell,)))
    return Table(("Arm", "Strength (log-odds)"), tuple(rows))


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts.items())


def decoding_name(decoding: Sampling) -> str:
    """The name of a decoding: `greedy`, or its active settings (`temperature 0.7, top-p 0.9`)."""
    if decoding.temperature == 0:
        return "greedy"
    parts = [f"temperature {decoding.temperature:g}"]
    if decoding.top_p != 1:
        parts.append(f"top-p {decoding.top_p:g}")
    if decoding.top_k:
        parts.append(f"top-k {decoding.top_k}")
    if decoding.min_p:
        parts.append(f"min-p {decoding.min_p:g}")
    return ", ".join(parts)


def to_markdown(table: Table) -> str:
    """The table in GitHub-flavoured Markdown."""
    header, *rows = table.texts
    lines = (
        " | ".join(text.replace("|", "\\|") for text in row)
        for row in (header, ["---"] * len(header), *rows)
    )
    return "".join(f"| {line} |\n" for line in lines)


def to_text(table: Table) -> str:
    """The table with aligned columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table.texts, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table.texts
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines) + "\n"


def share_cell(estimate: Estimate | None) -> Cell:
    """A share in percent with its interval and n; None: it was not measured."""
    if estimate is None:
        return Cell(ABSENT)
    if estimate.mean is None:
        return Cell("n/a", f"n={estimate.n}")
    interval = _interval(estimate.low, estimate.high, ".0f", scale=100)
    return Cell(f"{100 * estimate.mean:.1f} %", f"{interval} n={estimate.n}")


def _metric_cell(row: MetricRow, arm: str) -> Cell:
    """An arm's figure with its interval, n, and the number of answers without a score by reason."""
    estimate = row.arms[arm]
    if row.unit == "share" or estimate.mean is None:
        cell = share_cell(estimate)
    else:
        interval = _interval(estimate.low, estimate.high, ".2f" if row.unit == "kappa" else ".1f")
        cell = Cell(f"{estimate.mean:.2f}", f"{interval} n={estimate.n}")
    reasons = _reasons(row.missing.get(arm, {}))
    return replace(cell, detail=f"{cell.detail} ({reasons})") if reasons else cell


def _interval(
    low: float | None, high: float | None, form: str, between: str = "–", *, scale: float = 1
) -> str:
    """`[low–high]`, or `[n/a]` without an interval."""
    if low is None or high is None:
        return "[n/a]"
    return f"[{scale * low:{form}}{between}{scale * high:{form}}]"


def difference_cell(
    estimate: Estimate | None, unit: str, better: Better | None, p_holm: float | None = None
) -> Cell:
    """A difference in the unit, or in percentage points for shares. It has a tone only if one
    direction is better, the interval excludes zero, and the adjusted test, if any, is significant.
    """
    if estimate is None or estimate.mean is None:
        return Cell(ABSENT)
    low, high = estimate.low, estimate.high
    if unit == "share":
        value = f"{100 * estimate.mean:+z.1f} pp"
        interval = _interval(low, high, "+z.0f", ", ", scale=100)
    else:
        value, interval = f"{estimate.mean:+z.2f}", _interval(low, high, "+z.2f", ", ")
    if low is None or high is None:
        return Cell(value, f"{interval} n={estimate.n}")
    tone = ""
    if better and (low > 0 or high < 0) and (p_holm is None or p_holm <= LEVEL):
        tone = "better" if (low > 0) == (better == "higher") else "worse"
    return Cell(value, f"{interval} n={estimate.n} {_probability(p_holm)}".rstrip(), tone)


def _probability(p: float | None) -> str:
    if p is None:
        return ""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def _minus_half(rate: Estimate) -> Estimate:
    ends = (rate.mean, rate.low, rate.high)
    mean, low, high = (None if end is None else end - 0.5 for end in ends)
    return Estimate(rate.n, mean, low, high)


def kl_cell(training: TrainingFigures) -> Cell:
    """The KL ± its 95 % interval, and the step of its measurement if it is not the model's step."""
    kl = training.kl
    if kl is None:
        return Cell(ABSENT)
    error = "" if kl.se is None else f"± {half_width(kl.se):.2g} "
    step = "" if kl.step == training.selected_step else f", step {kl.step}"
    return Cell(f"{kl.per_token:.3g}", f"{error}n={kl.answers}{step}")


def steps_cell(training: TrainingFigures) -> Cell:
    """The number of steps, and the selected step if it is not the last."""
    steps, selected = training.steps, training.selected_step
    return Cell(str(steps), "" if selected == steps else f"step {selected} selected")


def margin_cell(training: TrainingFigures) -> Cell:
    """The last reward gap on validation pairs."""
    return number_cell(training.margin.last if training.margin else None, "+.3f")


def length_cell(length: Lengths | None) -> Cell:
    """The mean difference in length between dpo's and sft's answers, with its interval and as a
    percentage of sft's mean length."""
    if length is None or length.delta is None or length.delta.mean is None:
        return Cell(ABSENT)
    delta, sft = length.delta, length.arms["sft"].mean
    detail = _interval(delta.low, delta.high, "+.1f", ", ")
    if sft and delta.mean is not None:
        detail += f" ({100 * delta.mean / sft:+.0f} %)"
    return Cell(f"{delta.mean:+.1f} {length.unit}", detail)


def number_cell(value: float | None, form: str) -> Cell:
    """A figure without an interval, such as a loss; `form` is its format."""
    return Cell(ABSENT if value is None else format(value, form))
