"""report.html: one self-contained page, without scripts and without a request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_dist.reporting.tables import (
    CARD_NOTE,
    HEADERS,
    NO_CARD,
    ROUNDS_NOTE,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
    moment,
    rounds_table,
    score_badge,
)


def render_page(
    report: Mapping[str, Any],
    *,
    plots: Sequence[tuple[str, str]],
    round_plots: Sequence[tuple[str, str]] = (),
    samples: Sequence[Mapping[str, Any]],
) -> str:
    """The page. Everything but our own SVG is escaped by the template engine."""
    import yaml
    from markupsafe import Markup

    scores = report["comparison"]
    tables = [
        (decoding_name(decoding), comparison_table(scores, number))
        for number, decoding in enumerate(scores["decodings"])
    ]
    rows = {row["metric"]: row for row in scores["metrics"]}
    return render_template(
        "report.html.j2",
        report=report,
        tables=tables,
        audit=audit_table(report["audit"]),
        card=canary_table(report["canaries"]),
        card_note=CARD_NOTE.replace("`", ""),
        no_card=NO_CARD,
        badge=lambda metric, value: score_badge(rows[metric], value),
        headers=HEADERS,
        moment=moment,
        plots=[(title, Markup(svg)) for title, svg in plots],
        rounds=rounds_table(report["rounds"]),
        rounds_note=ROUNDS_NOTE,
        funnels=_funnels(report),
        round_plots=[(title, Markup(svg)) for title, svg in round_plots],
        samples=samples,
        same_judge=same_judge(report["judges"]),
        configuration=yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True),
    )


def _funnels(report: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """(name, steps): of the run, or of every round."""
    rounds = [(f"Round {figures['round']}", figures["funnel"]) for figures in report["rounds"]]
    return rounds or [("Preference data", report["funnel"])]


def render_template(name: str, **values: Any) -> str:
    """A page from the package's templates; all values but `Markup` are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dpo_dist.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def same_judge(judges: Mapping[str, str | None]) -> bool:
    """Whether the judge of the evaluation made the training labels, too."""
    labelling = judges.get("judge")
    return labelling is not None and labelling == judges.get("evaluate")
