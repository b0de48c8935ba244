"""report.html: one self-contained page that sends no requests and is readable without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from dpo_dist.reporting.gallery import MOST_CHARACTERS, Gallery
from dpo_dist.reporting.plots import themed
from dpo_dist.reporting.report import ReportData, look_up
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
    score_badge,
)
from dpo_dist.storage.figures import to_json

if TYPE_CHECKING:
    from jinja2 import Environment
    from pydantic import JsonValue

HERE = "dpo_dist.reporting"
# The names of the page's filters, by tag of a sample.
FILTERS = {
    "lost": "SFT+DPO lost",
    "won": "won",
    "tie": "tie",
    "inconsistent": "inconsistent",
    "missing": "no verdict",
    "cut-off": "SFT+DPO cut off",
    "fell": "a metric fell",
}


def render_page(
    report: ReportData,
    *,
    plots: Sequence[tuple[str, str]],
    round_plots: Sequence[tuple[str, str]] = (),
    gallery: Gallery,
) -> str:
    """Render the page. The template engine escapes everything except our own SVG, style and script;
    the browser runs only that script, which the page identifies by its hash."""
    import yaml
    from markupsafe import Markup

    scores = report.comparison
    tables = [
        (decoding_name(decoding), comparison_table(scores, number))
        for number, decoding in enumerate(scores.decodings)
    ]
    rows = {row.metric: row for row in scores.metrics}
    round_funnels = [(f"Round {figures.round}", figures.funnel) for figures in report.rounds]
    script = templates().get_template("script.js").render()
    counts = {tag: sum(tag in sample.tags for sample in gallery.samples) for tag in FILTERS}
    return render_template(
        "report.html.j2",
        report=report,
        tables=tables,
        pairwise=pairwise_table(scores),
        ranking=ranking_table(report.ranking, scores),
        reflection=[
            (topic, list(sentences))
            for topic, sentences in groupby(report.reflection, key=lambda sentence: sentence.topic)
        ],
        evidence=_evidence(report),
        reflection_title=REFLECTION,
        audit=audit_table(report.audit),
        card=canary_table(report.canaries),
        card_note=CARD_NOTE.replace("`", ""),
        no_card=NO_CARD,
        badge=lambda metric, value: score_badge(rows[metric], value),
        label=scores.label,
        plots=[(title, Markup(themed(svg))) for title, svg in plots],
        rounds=rounds_table(report.rounds),
        rounds_note=ROUNDS_NOTE,
        funnels=round_funnels or [("Preference data", report.funnel)],
        round_plots=[(title, Markup(themed(svg))) for title, svg in round_plots],
        gallery=gallery,
        filters=[(tag, FILTERS[tag], count) for tag, count in counts.items() if count],
        most_characters=MOST_CHARACTERS,
        configuration=yaml.safe_dump(dict(report.config), sort_keys=False, allow_unicode=True),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _evidence(report: ReportData) -> list[tuple[str, str]]:
    """(name, value) of the figures behind the reflection, each once."""
    values = to_json(report)
    names = dict.fromkeys(name for sentence in report.reflection for name in sentence.figures)
    return [(name, _brief(look_up(values, name))) for name in names]


def _brief(value: JsonValue) -> str:
    """A figure, or a summary of an estimate, a mapping or a list, on one line."""
    if isinstance(value, dict) and "mean" in value:
        value = {key: value[key] for key in ("mean", "low", "high", "n") if key in value}
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"{len(value)} listed"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def render_template(name: str, package: str = HERE, **values: object) -> str:
    """Render a template of `package`. All values except `Markup` are escaped."""
    return templates(package).get_template(name).render(**values)


def templates(package: str = HERE, *, autoescape: bool = True) -> Environment:
    """The templates of a package, which may include and extend the templates of this package. An
    undefined value in a template is an error."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(HERE)]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
