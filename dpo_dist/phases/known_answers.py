"""Reuses answers of other evaluations with the same weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.runs.manifests import read_manifest
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import MANIFEST, read_records
from dpo_dist.storage.manifest import read_fingerprint
from dpo_dist.storage.records import Generation
from dpo_dist.storage.shards import Journals
from dpo_dist.system.console import counted, say

Inputs = Mapping[str, JsonValue]


def take_over(
    run: Run, out: Path, wanted: Collection[str], journals: Journals[Generation]
) -> int | None:
    """Copy the answers to `wanted` requests from earlier rounds, or from other points of a sweep,
    to the journal. Returns how many there are; None for a run without rounds and sweep."""
    if run.config.rounds is None and run.point is None:
        return None
    earlier = known_answers(run, read_fingerprint(out).inputs)
    known = {name: earlier[name] for name in wanted if name in earlier}
    if known:
        journals.own.append(answer for name, answer in known.items() if name not in journals)
        journals.refresh()
        say(
            f"evaluate: reusing {counted(len(known), 'answer')} of another evaluation "
            "of the same weights"
        )
    return len(known)


def known_answers(run: Run, inputs: Inputs) -> dict[str, Generation]:
    """The answers of other evaluations by arms with the same weights and the same
    system prompt and examples, by request id. `inputs` are
    those of this evaluation (`EvaluatePhase.inputs`). Another evaluation is used if it is complete
    and has the same prompts, engine, precision, decodings, length limit and seed."""
    settings, arms = _settings(run.config.dump()), _arms(inputs)
    known: dict[str, Generation] = {}
    for folder in run.earlier_evaluations():
        if not (folder / MANIFEST).exists():
            continue
        other = read_fingerprint(folder).inputs
        other_settings = _settings(read_manifest(folder).config)
        if other["prompts"] != inputs["prompts"] or other_settings != settings:
            continue
        others = _arms(other)
        same = {arm for arm in arms if others.get(arm) == arms[arm]}
        for answer in read_records(folder / "generations.jsonl", Generation):
            if answer.arm in same:
                known.setdefault(request_of(answer), answer)
    return known


def request_of(answer: Generation) -> str:
    """The id of the request that an answer belongs to."""
    return f"{answer.arm}/{answer.decoding}/{answer.prompt_id}"


def _arms(inputs: Inputs) -> dict[str, list[JsonValue]]:
    """What decides the answers of each arm: its weights, and what it sees besides the prompt."""
    weights, prompting = inputs["weights"], inputs.get("prompting", {})
    assert isinstance(weights, dict) and isinstance(prompting, dict)
    return {arm: [identity, prompting.get(arm)] for arm, identity in weights.items()}


def _settings(config: Mapping[str, JsonValue]) -> list[JsonValue]:
    """The values of a run file that decide an arm's answers, besides `_arms` and the prompts."""

    def part(section: str, key: str) -> JsonValue:
        values = config.get(section)
        return values.get(key) if isinstance(values, dict) else None

    return [
        part("evaluate", "engine") or part("sample", "engine"),
        part("evaluate", "decodings"),
        part("evaluate", "max_new_tokens"),
        part("model", "dtype"),
        part("model", "chat_template"),
        part("model", "chat_template_kwargs"),
        part("run", "seed"),
    ]
