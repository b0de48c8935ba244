"""The model card: the training, its data, and the results of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from dpo_dist.config import (
    Config,
    DataPreferences,
    DataSource,
    JudgedPreferences,
    Lora,
    Preferences,
    UltraFeedbackPreferences,
    required,
)
from dpo_dist.data.models import is_hub_id
from dpo_dist.reporting.markdown import funnel_line
from dpo_dist.reporting.page import templates
from dpo_dist.reporting.report import ReportData
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    canary_table,
    comparison_table,
    decoding_name,
    to_markdown,
)
from dpo_dist.reporting.text import plain_markdown, visible
from dpo_dist.runs.manifests import TrainManifest
from dpo_dist.storage.figures import parse_figures
from dpo_dist.system.options import Option

UNKNOWN_LICENSE = "unknown"
Source: TypeAlias = DataSource | Preferences


@dataclass(frozen=True)
class CardFacts:
    """Facts for the card that the run does not contain. `base_model` is the Hub id of the model
    that was trained further; `adapter`: the weights are a LoRA adapter."""

    adapter: bool
    repo: Annotated[
        str | None, Option("upload to this repository; a new one is private", "OWNER/NAME")
    ] = None
    base_model: Annotated[
        str | None, Option("Hub id of the base model, if the run file names a path", "OWNER/NAME")
    ] = None
    license: Annotated[
        str, Option("licence id as the Hub spells it, e.g. apache-2.0 or other", "ID")
    ] = UNKNOWN_LICENSE
    license_name: Annotated[str | None, Option("licence name for --license other", "NAME")] = None
    license_link: Annotated[str | None, Option("licence link for --license other", "URL")] = None
    languages: Annotated[tuple[str, ...], Option("language for the card", "en", "language")] = ()
    datasets: Annotated[
        tuple[str, ...], Option("dataset for the card", "OWNER/NAME", "dataset")
    ] = ()
    tags: Annotated[tuple[str, ...], Option("tag for the card", "WORD", "tag")] = ()


def model_card(report: ReportData, training: TrainManifest, prompts: int, facts: CardFacts) -> str:
    """The model's README.md; `prompts` is the number of held-out prompts."""
    config = parse_figures(report.config, Config, "report.json")
    scores, base = report.comparison, config.model.base
    # Texts that are not our own are escaped by `_plain` or `_code`.
    return (
        templates("dpo_dist.tools.push", autoescape=False)
        .get_template("card.md.j2")
        .render(
            front_matter=_front_matter(config, facts),
            run=_plain(report.run),
            adapter=facts.adapter,
            labelled_by=_code(report.judges.get("judge")),
            source=_plain(_named(config.preferences)),
            summary=[_plain(sentence) for sentence in report.summary],
            tables=[
                (decoding_name(decoding), to_markdown(comparison_table(scores, number)))
                for number, decoding in enumerate(scores.decodings)
            ],
            base=_plain(base if is_hub_id(base) else Path(base).name),
            evaluated_by=_code(report.judges.get("evaluate")),
            limitations=[_plain(sentence) for sentence in limitations(report, prompts, facts)],
            repo=facts.repo or "OWNER/NAME",
            provenance=[_plain(sentence) for sentence in provenance(config, prompts)],
            funnel=[funnel_line(step) for step in report.funnel],
            canaries=to_markdown(canary_table(report.canaries)) if report.canaries else "",
            card_note=CARD_NOTE,
            training=[(name, _plain(str(value))) for name, value in _settings(config, training)],
            made_with=_plain(report.versions.get("dpo_dist", "")),
            versions={_plain(name): _plain(value) for name, value in report.versions.items()},
            git=_plain(report.git or ""),
        )
    )


def limitations(report: ReportData, prompts: int, facts: CardFacts) -> list[str]:
    """What the evaluation does not show, and the run's warnings."""
    decodings = ", ".join(decoding_name(d) for d in report.comparison.decodings)
    benchmarks = [
        row.label.removeprefix("Benchmark ")
        for row in report.comparison.metrics
        if row.metric.startswith("benchmark:")
    ]
    known = f" beyond {', '.join(benchmarks)}" if benchmarks else ""
    found = [
        f"All figures come from {prompts} held-out prompts, one answer each ({decodings}); they "
        "say nothing about other prompts or sampling settings.",
        f"Safety and knowledge were not evaluated{known}; the base model's limitations apply.",
    ]
    if report.same_judge:
        found.append(
            "The judge that labelled the training pairs also made the comparison, so it only shows "
            "how well DPO reached its training objective."
        )
    if report.judges.get("judge") and not report.canaries:
        found.append("The judge was not tested with canaries.")
    found += [
        f"The judge passed {row.passed} of {row.n} canaries of the kind “{row.label}”."
        for row in report.canaries
        if row.status != "passed"
    ]
    found += [
        f"Labels: {share.label[:1].lower()}{share.label[1:]} in {100 * share.mean:.0f} % "
        f"of {share.n}, which is outside the expected range."
        for share in report.audit
        if share.remedy and share.mean is not None
    ]
    found += [
        f"Alarm in training at step {alarm.step} ({alarm.kind}): {alarm.message}"
        for alarm in report.alarms
    ]
    if facts.license == UNKNOWN_LICENSE:
        found.append("The licence is not stated; at least that of the base model applies.")
    return found


def provenance(config: Config, held_out: int) -> list[str]:
    """The sources of the texts. For a local file only its name is shown."""
    found = []
    if config.sft is not None:
        found.append(f"Demonstrations (SFT): {_named(config.sft.data)}.")
    if not isinstance(config.preferences, JudgedPreferences):
        found.append(f"Preference pairs: {_named(config.preferences)}.")
    elif (sample := config.sample) is not None:
        slots = ", ".join(decoding_name(slot) for slot in sample.slots)
        found.append(
            f"Prompts: {_named(sample.prompts)}; {len(sample.slots)} answers each from the "
            f"model that DPO started from ({slots})."
        )
    found.append(
        f"Held-out prompts: {_named(required(config.evaluate).prompts)}, {held_out} of them; "
        "preference pairs whose prompts overlap with them were left out."
    )
    return found


def datasets_of(config: Config) -> list[str]:
    """The Hub datasets that a run was trained on."""
    preferences = config.preferences
    judged = isinstance(preferences, JudgedPreferences)
    sources = [
        config.sft.data if config.sft else None,
        *(preferences.sources if isinstance(preferences, DataPreferences) else [preferences]),
        config.sample.prompts if judged and config.sample else None,
    ]
    return [
        source.dataset
        for source in sources
        if isinstance(source, DataSource | UltraFeedbackPreferences) and source.dataset
    ]


def _front_matter(config: Config, facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    kind = ["lora"] if facts.adapter else []
    data = ModelCardData(
        base_model=facts.base_model,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        language=list(facts.languages) or None,
        datasets=list(dict.fromkeys([*datasets_of(config), *facts.datasets])) or None,
        tags=list(dict.fromkeys(["dpo", "trl", *kind, "dpo_dist", *facts.tags])),
    )
    return str(data.to_yaml())


def _settings(config: Config, manifest: TrainManifest) -> Sequence[tuple[str, object]]:
    train = required(config.train)
    method = "all weights"
    if isinstance(lora := train.method, Lora):
        method = f"LoRA r={lora.r}, alpha={lora.alpha}, dropout={lora.dropout}"
    loss = ", ".join(f"{name} ({weight:g})" for name, weight in train.loss.items())
    pairs = manifest.pairs
    return [
        ("Method", method),
        ("Loss (weight)", loss),
        ("β", train.beta),
        ("Reference", manifest.reference),
        ("Learning rate", train.learning_rate),
        ("Epochs", train.num_epochs),
        ("Global batch", train.global_batch_size),
        ("Longest sequence", f"{train.max_length} tokens; longer pairs dropped, none truncated"),
        ("Pairs", f"{pairs.train} to train on, {pairs.validation} for validation"),
        ("Steps", f"{manifest.steps}; the weights are those of step {manifest.selected_step}"),
        ("Precision", f"weights {config.model.dtype}, bf16 training: {train.bf16}"),
        ("Processes", manifest.processes),
        ("Seed", config.run.seed),
    ]


def _named(source: Source) -> str:
    """The name of a Hub dataset, or of a local file without its folder, which may be private."""
    match source:
        case DataPreferences(mixture=(_, *_) as mixture):
            return ", ".join(map(_named, mixture))
        case DataSource(path=Path() as path):
            return f"the file {path.name}"
        case DataSource():
            return f"{source.dataset} ({source.split})"
        case UltraFeedbackPreferences():
            return source.dataset
        case JudgedPreferences():
            return source.source


def _plain(text: str) -> str:
    return plain_markdown(visible(text))


def _code(text: str | None) -> str:
    """Text for a code span, in which backticks cannot be escaped."""
    return visible(text or "").replace("`", "'").replace("\n", " ")
