"""report.html: one self-contained page, without scripts and without a request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_dist.reporting.tables import (
    CARD_NOTE,
    HEADERS,
    NO_CARD,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
)


def render_page(
    report: Mapping[str, Any],
    *,
    plots: Sequence[tuple[str, str]],
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
    labels = {row["metric"]: row["label"] for row in scores["metrics"]}
    points = {row["metric"] for row in scores["metrics"] if row["unit"] == "points"}
    return render_template(
        "report.html.j2",
        report=report,
        tables=tables,
        audit=audit_table(report["audit"]),
        card=canary_table(report["canaries"]),
        card_note=CARD_NOTE.replace("`", ""),
        no_card=NO_CARD,
        labels=labels,
        points=points,
        headers=HEADERS,
        plots=[(title, Markup(svg)) for title, svg in plots],
        samples=samples,
        same_judge=_same_judge(report["judges"]),
        configuration=yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True),
    )


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


def _same_judge(judges: Mapping[str, str | None]) -> bool:
    """Whether the judge of the evaluation made the training labels, too."""
    labelling = judges.get("judge")
    return labelling is not None and labelling == judges.get("evaluate")
