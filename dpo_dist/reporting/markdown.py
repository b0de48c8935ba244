"""report.md: the tables and sentences of the report, without the answers."""

from __future__ import annotations

from itertools import groupby

from dpo_dist.reporting.figures import FunnelStep
from dpo_dist.reporting.report import ReportData
from dpo_dist.reporting.rounds import NOTE as ROUNDS_NOTE
from dpo_dist.reporting.rounds import rounds_table
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    NO_CARD,
    REFLECTION,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
    pairwise_table,
    ranking_table,
    to_markdown,
)
from dpo_dist.reporting.text import plain_markdown


def markdown(report: ReportData) -> str:
    """The report as Markdown."""
    scores = report.comparison
    parts = [f"# {report.run}\n", *(f"- {sentence}" for sentence in report.summary)]
    for number, decoding in enumerate(scores.decodings):
        parts += [f"\n## Held-out prompts, {decoding_name(decoding)}\n"]
        parts += [to_markdown(comparison_table(scores, number))]
    parts += [
        "Cells: mean, 95 % interval over prompts, number of prompts; p after Holm correction.\n"
    ]
    parts += _reflection(report)
    if report.rounds:
        parts += ["\n## Rounds\n", to_markdown(rounds_table(report.rounds)), ROUNDS_NOTE]
    parts.append("\n## Data\n")
    for figures in report.rounds:
        parts += [f"Round {figures.round}:\n", *map(funnel_line, figures.funnel), ""]
    if not report.rounds:
        parts += map(funnel_line, report.funnel)
    if report.audit:
        parts.append("\n## Labels\n")
        parts.append(to_markdown(audit_table(report.audit)))
        parts += [f"- {plain_markdown(s.label)}: {s.remedy}." for s in report.audit if s.remedy]
    if report.canaries:
        parts.append("\n## The judge's card\n")
        parts += [to_markdown(canary_table(report.canaries)), CARD_NOTE]
    elif report.judges.get("judge"):
        parts.append(f"\n{NO_CARD}")
    if (pairwise := pairwise_table(scores)).rows:
        parts += ["\n## Pairwise verdicts\n", to_markdown(pairwise)]
    if (ranking := ranking_table(report.ranking, scores)).rows:
        parts += ["Strength from all verdicts (Bradley and Terry 1952):\n", to_markdown(ranking)]
    if report.alarms:
        parts.append("\n## Alarms during training\n")
        parts += [
            f"- {a.moment}, {plain_markdown(a.kind)}: {plain_markdown(a.message)}"
            for a in report.alarms
        ]
    return "\n".join(parts) + "\n"


def _reflection(report: ReportData) -> list[str]:
    parts = [f"## {REFLECTION}\n"] if report.reflection else []
    for topic, sentences in groupby(report.reflection, key=lambda sentence: sentence.topic):
        text = " ".join(plain_markdown(sentence.text) for sentence in sentences)
        parts.append(f"- **{topic}.** {text}")
    return parts


def funnel_line(step: FunnelStep) -> str:
    """The counts of a phase as an item of a Markdown list."""
    dropped = ", ".join(f"{n} {reason}" for reason, n in step.dropped.items()) or "none"
    kept = f"{step.kept} kept"
    if step.kept_inconsistent is not None:
        kept += f" ({step.kept_inconsistent} inconsistent)"
    return f"- {step.phase}: {step.received} {step.unit} in, {kept}; dropped: {dropped}"
