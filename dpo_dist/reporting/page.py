"""report.html: one self-contained page that asks nobody for anything, and reads without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dpo_dist.reporting.gallery import MOST_CHARACTERS, Gallery
from dpo_dist.reporting.plots import themed
from dpo_dist.reporting.rounds import NOTE as ROUNDS_NOTE
from dpo_dist.reporting.rounds import rounds_table
from dpo_dist.reporting.sentence import look_up
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    HEADERS,
    NO_CARD,
    REFLECTION,
    audit_table,
    canary_table,
    comparison_table,
    decoding_name,
    moment,
    pairwise_table,
    ranking_table,
    score_badge,
)

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = "dpo_dist.reporting"
# By tag of a sample; the page's filters.
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
    report: Mapping[str, Any],
    *,
    plots: Sequence[tuple[str, str]],
    round_plots: Sequence[tuple[str, str]] = (),
    gallery: Gallery,
) -> str:
    """The page. Everything but our own SVG, style and script is escaped by the template engine;
    the browser runs no other script (by its hash)."""
    import yaml
    from markupsafe import Markup

    scores = report["comparison"]
    tables = [
        (decoding_name(decoding), comparison_table(scores, number))
        for number, decoding in enumerate(scores["decodings"])
    ]
    rows = {row["metric"]: row for row in scores["metrics"]}
    script = templates().get_template("script.js").render()
    counts = {tag: sum(tag in sample.tags for sample in gallery.samples) for tag in FILTERS}
    return render_template(
        "report.html.j2",
        report=report,
        tables=tables,
        pairwise=pairwise_table(scores),
        ranking=ranking_table(report["ranking"]),
        reflection=[
            (topic, list(sentences))
            for topic, sentences in groupby(report["reflection"], key=lambda s: s["topic"])
        ],
        evidence=_evidence(report),
        reflection_title=REFLECTION,
        audit=audit_table(report["audit"]),
        card=canary_table(report["canaries"]),
        card_note=CARD_NOTE.replace("`", ""),
        no_card=NO_CARD,
        badge=lambda metric, value: score_badge(rows[metric], value),
        headers=HEADERS,
        moment=moment,
        plots=[(title, Markup(themed(svg))) for title, svg in plots],
        rounds=rounds_table(report["rounds"]),
        rounds_note=ROUNDS_NOTE,
        funnels=_funnels(report),
        round_plots=[(title, Markup(themed(svg))) for title, svg in round_plots],
        gallery=gallery,
        filters=[(tag, FILTERS[tag], count) for tag, count in counts.items() if count],
        most_characters=MOST_CHARACTERS,
        same_judge=same_judge(report["judges"]),
        configuration=yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _evidence(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the figures that the reflection rests on, each once."""
    names = dict.fromkeys(name for s in report["reflection"] for name in s["figures"])
    return [(name, _brief(look_up(report, name))) for name in names]


def _brief(value: Any) -> str:
    """A figure, or what an estimate, a pair or a list is about, on one line."""
    if isinstance(value, Mapping) and "mean" in value:
        value = {key: value[key] for key in ("mean", "low", "high", "n") if key in value}
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_brief(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"{len(value)} listed"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _funnels(report: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """(name, steps): of the run, or of every round."""
    rounds = [(f"Round {figures['round']}", figures["funnel"]) for figures in report["rounds"]]
    return rounds or [("Preference data", report["funnel"])]


def render_template(name: str, package: str = HERE, **values: Any) -> str:
    """Render a template of `package` as a page; all values but `Markup` are escaped."""
    return templates(package).get_template(name).render(**values)


def templates(package: str = HERE, *, autoescape: bool = True) -> Environment:
    """The templates of a package, which may build on this package's own.

    A value that a template names and nobody gives is an error.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(HERE)]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def same_judge(judges: Mapping[str, str | None]) -> bool:
    """Whether the judge of the evaluation made the training labels, too."""
    labelling = judges.get("judge")
    return labelling is not None and labelling == judges.get("evaluate")
