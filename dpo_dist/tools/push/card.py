"""The model card: what was trained, on what, and what the evaluation shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.data.models import is_hub_id
from dpo_dist.reporting.funnel import funnel_line
from dpo_dist.reporting.page import same_judge, templates
from dpo_dist.reporting.tables import (
    CARD_NOTE,
    canary_table,
    comparison_table,
    decoding_name,
    to_markdown,
)
from dpo_dist.reporting.text import plain_markdown, visible

UNKNOWN_LICENSE = "unknown"


@dataclass(frozen=True)
class CardFacts:
    """What no run knows of itself. `base_model` is the Hub id of the weights that these ones build
    on, None where they are on no hub; `adapter` says that they are a LoRA adapter."""

    base_model: str | None
    adapter: bool
    repo: str | None = None
    license: str = UNKNOWN_LICENSE
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def model_card(
    report: Mapping[str, Any], training: Mapping[str, Any], scores_n: int, facts: CardFacts
) -> str:
    """README.md of a repository of the model.

    `report` is the content of report.json, `training` the manifest of the train phase, `scores_n`
    the number of held-out prompts.
    """
    config, scores = report["config"], report["comparison"]
    judges = report["judges"]
    canaries = report["canaries"]
    # Markdown: what comes from outside goes through `_plain`.
    return (
        templates("dpo_dist.tools.push", autoescape=False)
        .get_template("card.md.j2")
        .render(
            front_matter=_front_matter(config, facts),
            run=_plain(report["run"]),
            what="A LoRA adapter" if facts.adapter else "A model",
            labelled_by=_code(judges.get("judge")),
            source=_plain(_named(config["preferences"])),
            summary=[_plain(sentence) for sentence in report["summary"]],
            tables=[
                (decoding_name(decoding), to_markdown(comparison_table(scores, number)))
                for number, decoding in enumerate(scores["decodings"])
            ],
            base=_plain(_model_name(config["model"]["base"])),
            evaluated_by=_code(judges.get("evaluate")),
            limitations=[_plain(sentence) for sentence in limitations(report, scores_n, facts)],
            usage=_usage(facts),
            provenance=[_plain(sentence) for sentence in provenance(config, scores_n)],
            funnel=[funnel_line(step) for step in report["funnel"]],
            canaries=to_markdown(canary_table(canaries)) if canaries else "",
            card_note=CARD_NOTE,
            training=[(name, _plain(str(value))) for name, value in _settings(config, training)],
            made_with=_plain(report["versions"].get("dpo_dist", "")),
            versions={_plain(name): _plain(value) for name, value in report["versions"].items()},
            git=_plain(report["git"] or ""),
        )
    )


def limitations(report: Mapping[str, Any], prompts: int, facts: CardFacts) -> list[str]:
    """What the evaluation does not show, and what the run has warned of."""
    decodings = ", ".join(decoding_name(d) for d in report["comparison"]["decodings"])
    found = [
        f"All figures come from {prompts} held-out prompts, one answer each ({decodings}); they "
        "say nothing about other prompts or sampling settings.",
        _not_evaluated(report),
    ]
    judges = report["judges"]
    if same_judge(judges):
        found.append(
            "The judge that labelled the training pairs also made the comparison: it shows what "
            "DPO was trained towards, and no more."
        )
    if judges.get("judge") and not report["canaries"]:
        found.append("Whether the judge can tell good from bad was not tested with canaries.")
    found += [
        f"The judge passed {row['passed']} of {row['n']} canaries of the kind “{row['label']}”."
        for row in report["canaries"]
        if row["status"] != "passed"
    ]
    found += [
        f"Labels: {share['label'][:1].lower()}{share['label'][1:]} in {100 * share['mean']:.0f} % "
        f"of {share['n']}, which is outside the expected range."
        for share in report["audit"]
        if share["remedy"]
    ]
    found += [
        f"Alarm in training at step {alarm['step']} ({alarm['kind']}): {alarm['message']}"
        for alarm in report["alarms"]
    ]
    if facts.license == UNKNOWN_LICENSE:
        found.append("The licence is not stated; at least that of the base model applies.")
    return found


def _not_evaluated(report: Mapping[str, Any]) -> str:
    benchmarks = [
        row["label"].removeprefix("Benchmark ")
        for row in report["comparison"]["metrics"]
        if row["metric"].startswith("benchmark:")
    ]
    known = f" beyond {', '.join(benchmarks)}" if benchmarks else ""
    return f"Safety and knowledge were not evaluated{known}; the base model's limitations apply."


def provenance(config: Mapping[str, Any], held_out: int) -> list[str]:
    """Where the texts come from. Of a local file only its name is told."""
    found = []
    if config.get("sft"):
        found.append(f"Demonstrations (SFT): {_named(config['sft']['data'])}.")
    if config["preferences"]["source"] != "judged":
        found.append(f"Preference pairs: {_named(config['preferences'])}.")
    elif config.get("sample"):
        sample = config["sample"]
        slots = ", ".join(decoding_name(slot) for slot in sample["slots"])
        found.append(
            f"Prompts: {_named(sample['prompts'])}; {len(sample['slots'])} answers each from the "
            f"model that DPO started from ({slots})."
        )
    held_out_source = _named(config["evaluate"]["prompts"])
    found.append(
        f"Held-out prompts: {held_out_source}, {held_out} of them; preference pairs whose prompts "
        "overlap with them were left out."
    )
    return found


def datasets_of(config: Mapping[str, Any]) -> list[str]:
    """The Hub datasets that a run was trained on."""
    sources = [(config.get("sft") or {}).get("data"), config["preferences"]]
    if config["preferences"]["source"] == "judged":
        sources.append((config.get("sample") or {}).get("prompts"))
    return list(dict.fromkeys(s["dataset"] for s in sources if s and s.get("dataset")))


def _front_matter(config: Mapping[str, Any], facts: CardFacts) -> str:
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


def _settings(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    train = config["train"]
    method = train["method"]
    lora = f"LoRA r={method.get('r')}, alpha={method.get('alpha')}, dropout={method.get('dropout')}"
    loss = ", ".join(f"{name} ({weight:g})" for name, weight in train["loss"].items())
    pairs = manifest["pairs"]
    return [
        ("Method", lora if method["type"] == "lora" else "all weights"),
        ("Loss (weight)", loss),
        ("β", train["beta"]),
        ("Reference", manifest["reference"]),
        ("Learning rate", train["learning_rate"]),
        ("Epochs", train["num_epochs"]),
        ("Global batch", train["global_batch_size"]),
        ("Longest sequence", f"{train['max_length']} tokens; longer pairs dropped, none truncated"),
        ("Pairs", f"{pairs['train']} to train on, {pairs['validation']} for validation"),
        (
            "Steps",
            f"{manifest['steps']}; the weights are those of step {manifest['selected_step']}",
        ),
        ("Precision", f"weights {config['model']['dtype']}, bf16 training: {train['bf16']}"),
        ("Processes", manifest["processes"]),
        ("Seed", config["run"]["seed"]),
    ]


def _usage(facts: CardFacts) -> str:
    repo = facts.repo or "OWNER/NAME"
    if not facts.adapter:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{repo}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
        )
    return (
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    )


def _named(source: Mapping[str, Any]) -> str:
    """A Hub dataset, or a local file without its folder, which is nobody's business."""
    if source.get("dataset"):
        name = str(source["dataset"])
        return f"{name} ({source['split']})" if source.get("split") else name
    if source.get("path"):
        return f"the file {Path(source['path']).name}"
    return str(source.get("source", "unknown"))


def _model_name(model: str) -> str:
    """A Hub id as it is; of a path the last part only."""
    return model if is_hub_id(model) else Path(model).name


def _plain(text: str) -> str:
    return plain_markdown(visible(text))


def _code(text: str | None) -> str:
    """Within backticks nothing is escaped, so none may be in it."""
    return visible(text or "").replace("`", "'").replace("\n", " ")
