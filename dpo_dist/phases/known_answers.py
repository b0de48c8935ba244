"""What arms have answered in other evaluations with the same weights: it is not generated again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dpo_dist.config import Config
from dpo_dist.runs.directories import evaluations
from dpo_dist.storage.artifacts import (
    FINGERPRINT,
    MANIFEST,
    PhaseDirectory,
    read_json,
    read_records,
)
from dpo_dist.storage.records import Generation
from dpo_dist.storage.shards import Journals
from dpo_dist.system.console import counted, say


def take_over(
    config: Config, out: PhaseDirectory, wanted: Collection[str], journals: Journals[Generation]
) -> dict[str, int]:
    """Put into the journal what earlier rounds, or a sweep's other points, have answered with the
    same weights, of the requests that are `wanted`, and return the count for the manifest."""
    if config.rounds is None and config.run.point is None:
        return {}
    earlier = known_answers(config, read_json(out.path / FINGERPRINT)["inputs"])
    known = {name: earlier[name] for name in wanted if name in earlier}
    if known:
        journals.own.append(answer for name, answer in known.items() if name not in journals)
        journals.refresh()
        say(
            f"evaluate: reusing {counted(len(known), 'answer')} of another evaluation "
            "of the same weights"
        )
    return {"taken_over": len(known)}


def known_answers(config: Config, reads: Mapping[str, Any]) -> dict[str, Generation]:
    """What arms of the same weights have answered in other evaluations, by request.

    `reads` is what this evaluation reads (`evaluate.inputs`). Another counts where it is complete
    and had the same prompts, engine, precision, decodings, length limit and seed.
    """
    decides, weights = _decides(config.model_dump(mode="json")), reads["weights"]
    known: dict[str, Generation] = {}
    for folder in evaluations(config):
        if not (folder / MANIFEST).exists():
            continue
        before = read_json(folder / FINGERPRINT)["inputs"]
        made_with = _decides(read_json(folder / MANIFEST)["config"])
        if before["prompts"] != reads["prompts"] or made_with != decides:
            continue
        same = {arm for arm in weights if before["weights"].get(arm) == weights[arm]}
        for answer in read_records(folder / "generations.jsonl", Generation):
            if answer.arm in same:
                known.setdefault(answered(answer), answer)
    return known


def answered(answer: Generation) -> str:
    """The id of the request that an answer of the evaluation belongs to."""
    return f"{answer.arm}/{answer.decoding}/{answer.prompt_id}"


def _decides(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an arm's answers, besides its weights and the prompts; of a run file's values,
    as a manifest holds them."""
    evaluate, sample = config["evaluate"], config["sample"] or {}
    return {
        "engine": evaluate["engine"] or sample.get("engine"),
        "decodings": evaluate["decodings"],
        "max_new_tokens": evaluate["max_new_tokens"],
        "dtype": config["model"]["dtype"],
        "seed": config["run"]["seed"],
    }
