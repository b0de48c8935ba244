"""The model card: the training, its data, and the results of the evaluation, if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dpo_dist.config import Config, Lora, required
from dpo_dist.config.training import RUNTIME_ARGS
from dpo_dist.data.models import is_hub_id
from dpo_dist.reporting.figures import AlarmRow, alarms, funnel
from dpo_dist.reporting.markdown import funnel_line
from dpo_dist.reporting.page import templates
from dpo_dist.reporting.provenance import datasets_of, named, provenance
from dpo_dist.reporting.report import ReportData
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    PREFERRED,
    canary_table,
    comparison_table,
    decoding_name,
    to_markdown,
)
from dpo_dist.reporting.text import plain_markdown, visible
from dpo_dist.runs.finished import WORK
from dpo_dist.runs.manifests import Manifests, TrainManifest, config_of
from dpo_dist.storage.artifacts import MANIFEST, write_text
from dpo_dist.storage.figures import parse_figures, read_figures
from dpo_dist.system.options import Option
from dpo_dist.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

UNKNOWN_LICENSE = "unknown"


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


@dataclass(frozen=True)
class CardSource:
    """What a card is written from: a complete training, the manifests of the run's phases up to it,
    and the report; None: nothing was evaluated."""

    training: TrainManifest
    manifests: Manifests
    alarms: Sequence[AlarmRow]
    report: ReportData | None = None

    @classmethod
    def read(cls, train: Path, report: ReportData | None = None) -> CardSource:
        """Read the phases beside a train phase, and those that its round or point shares with the
        run. Raises `DataError` for damaged files."""
        folders = [above / phase for above in (*train.parents[1:3], train.parent) for phase in WORK]
        return cls(
            training=read_figures(train / MANIFEST, TrainManifest),
            manifests=Manifests.read(folders),
            alarms=alarms(read_metrics(train / "metrics.jsonl")),
            report=report,
        )

    @property
    def config(self) -> Config:
        if self.report is not None:
            return parse_figures(self.report.config, Config, "report.json")
        return config_of(self.training)

    @property
    def judged_by(self) -> str | None:
        """The judge that labelled the training pairs."""
        if self.config.preferences.source != "judged" or self.manifests.judge is None:
            return None
        return self.manifests.judge.judge

    @property
    def prompts(self) -> int:
        """The number of held-out prompts."""
        return self.manifests.evaluate.counts.kept if self.manifests.evaluate else 0


def write_cards(train: Path, report: ReportData | None = None) -> None:
    """Write the card of a complete train phase into its models' directories, in place of the
    template that PEFT or TRL has left there."""
    source = CardSource.read(train, report)
    base = source.config.model.base
    for folder in (train / "model", train / "merged"):
        if folder.is_dir():
            facts = CardFacts(
                adapter=(folder / "adapter_config.json").exists(),
                base_model=base if is_hub_id(base) else None,
            )
            write_text(folder / "README.md", model_card(source, facts))


def model_card(source: CardSource, facts: CardFacts) -> str:
    """The model's README.md."""
    config, report, training = source.config, source.report, source.training
    base = config.model.base
    judge = source.manifests.judge if source.judged_by else None
    # Texts that are not our own are escaped by `_plain` or `_code`.
    return (
        templates("dpo_dist.reporting", autoescape=False)
        .get_template("card.md.j2")
        .render(
            front_matter=_front_matter(source, facts),
            run=_plain(config.run.name),
            adapter=facts.adapter,
            labelled_by=_code(source.judged_by),
            source=_plain(named(config.preferences)),
            evaluated=report is not None,
            summary=[_plain(sentence) for sentence in report.summary] if report else [],
            tables=_tables(report) if report else [],
            base=_plain(base if is_hub_id(base) else Path(base).name),
            evaluated_by=_code(report.judges.get("evaluate") if report else None),
            limitations=[_plain(sentence) for sentence in limitations(source, facts)],
            repo=facts.repo or "OWNER/NAME",
            provenance=[_plain(sentence) for sentence in provenance(config, source.prompts)],
            funnel=[funnel_line(step) for step in funnel(source.manifests)],
            canaries=to_markdown(canary_table(judge.canaries)) if judge and judge.canaries else "",
            card_note=CARD_NOTE,
            training=[(name, _plain(str(value))) for name, value in _settings(config, training)],
            made_with=_plain(training.versions.get("dpo_dist", "")),
            versions={_plain(name): _plain(value) for name, value in training.versions.items()},
            git=_plain(training.git or ""),
        )
    )


def _tables(report: ReportData) -> list[tuple[str, str]]:
    """The comparison at each decoding: its name and its table."""
    scores = report.comparison
    return [
        (decoding_name(decoding), to_markdown(comparison_table(scores, number)))
        for number, decoding in enumerate(scores.decodings)
    ]


def limitations(source: CardSource, facts: CardFacts) -> list[str]:
    """What the evaluation does not show, and the run's warnings."""
    report = source.report
    found = [] if report is None else _limits_of_evaluation(report, source.prompts)
    if report is None:
        found.append("Nothing was evaluated: whether the training improved the model is unknown.")
    judge = source.manifests.judge if source.judged_by else None
    if judge is not None:
        if not judge.canaries:
            found.append("The judge was not tested with canaries.")
        found += [
            f"The judge passed {row.passed} of {row.n} canaries of the kind “{row.label}”."
            for row in judge.canaries
            if row.status != "passed"
        ]
        found += [
            f"Labels: {share.label[:1].lower()}{share.label[1:]} in {100 * share.mean:.0f} % "
            f"of {share.n}, which is outside the expected range."
            for share in judge.audit
            if share.remedy and share.mean is not None
        ]
    found += [
        f"Alarm in training at step {alarm.step} ({alarm.kind}): {alarm.message}"
        for alarm in (report.alarms if report else source.alarms)
    ]
    if facts.license == UNKNOWN_LICENSE:
        found.append("The licence is not stated; at least that of the base model applies.")
    return found


def _limits_of_evaluation(report: ReportData, prompts: int) -> list[str]:
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
    return found


def _front_matter(source: CardSource, facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    config, kind = source.config, ["lora"] if facts.adapter else []
    results = _eval_results(source.report, config) if source.report is not None else []
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
        model_name=config.run.name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _eval_results(report: ReportData, config: Config) -> list[EvalResult]:
    """The trained model's results at the first decoding, in the Hub's form."""
    from huggingface_hub import EvalResult

    prompts, scores = required(config.evaluate).prompts, report.comparison
    kind = prompts.dataset or "held-out"
    found = [
        (row.metric, row.label, row.arms["dpo"].mean)
        for row in scores.metrics
        if row.decoding == 0 and "dpo" in row.arms
    ]
    if (preferred := scores.preferred) is not None and preferred.decoding == 0:
        found.append(("win_rate", PREFERRED, preferred.mean))
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=metric.partition(":")[2] if metric.startswith("benchmark:") else kind,
            dataset_name=label if metric.startswith("benchmark:") else named(prompts),
            dataset_split=prompts.split,
            metric_type=metric,
            metric_name=visible(label),
            metric_value=round(value, 4),
        )
        for metric, label, value in found
        if value is not None
    ]


def _settings(config: Config, manifest: TrainManifest) -> Sequence[tuple[str, object]]:
    train = required(config.train)
    method = "all weights"
    if isinstance(lora := train.method, Lora):
        others = lora.model_dump(mode="json", exclude_defaults=True)
        others = {"r": lora.r, "alpha": lora.alpha} | others
        method = "LoRA " + ", ".join(f"{key}={value}" for key, value in others.items())
    loss = ", ".join(f"{name} ({weight:g})" for name, weight in train.loss.items())
    pairs = manifest.pairs
    return [
        ("Method", method),
        ("Loss (weight)", loss),
        ("β", train.beta),
        ("Reference", manifest.reference),
        ("Learning rate", train.learning_rate),
        *((f"`{key}`", value) for key, value in train.args.items() if key not in RUNTIME_ARGS),
        ("Epochs", train.num_epochs),
        ("Global batch", train.global_batch_size),
        ("Longest sequence", f"{train.max_length} tokens; longer pairs dropped, none truncated"),
        ("Pairs", f"{pairs.train} to train on, {pairs.validation} for validation"),
        ("Steps", f"{manifest.steps}; the weights are those of step {manifest.selected_step}"),
        ("Precision", f"weights {config.model.dtype}, bf16 training: {train.bf16}"),
        ("Processes", manifest.processes),
        ("Seed", config.run.seed),
    ]


def _plain(text: str) -> str:
    return plain_markdown(visible(text))


def _code(text: str | None) -> str:
    """Text for a code span, in which backticks cannot be escaped."""
    return visible(text or "").replace("`", "'").replace("\n", " ")
