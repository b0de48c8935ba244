"""What a round shares with those before it: prompts that are cut up, answers that are known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dpo_dist.artifacts import (
    FINGERPRINT,
    MANIFEST,
    PhaseDirectory,
    read_json,
    read_records,
)
from dpo_dist.config import Config
from dpo_dist.console import say
from dpo_dist.data.prompts import iterate_prompts, split_prompts
from dpo_dist.phases.runs import phase_dir
from dpo_dist.records import Generation, Prompt
from dpo_dist.shards import Journals


def round_prompts(config: Config) -> Iterable[Prompt]:
    """The prompts that are sampled, one by one: all, or the round's part of them."""
    assert config.sample is not None
    prompts = iterate_prompts(config.sample.prompts)
    if not _splits(config):
        return prompts
    assert config.rounds is not None
    return split_prompts(list(prompts), config.rounds.count, config.run.seed)[config.round - 1]


def part_identity(config: Config) -> dict[str, Any]:
    """What says in a fingerprint which part of the prompts is sampled; nothing where all are."""
    if not _splits(config):
        return {}
    assert config.rounds is not None
    return {"part": f"{config.round} of {config.rounds.count}"}


def _splits(config: Config) -> bool:
    return config.rounds is not None and config.rounds.prompts == "split"


def take_over(
    config: Config, out: PhaseDirectory, wanted: Collection[str], journals: Journals[Generation]
) -> dict[str, int]:
    """Put into the journal what earlier rounds have answered with the same weights, of the requests
    that are `wanted`, and return the count for the manifest."""
    if config.rounds is None:
        return {}
    reads = read_json(out.path / FINGERPRINT)["inputs"]
    earlier = known_answers(config, reads["weights"], reads["prompts"])
    known = {name: earlier[name] for name in wanted if name in earlier}
    journals.own.append(answer for name, answer in known.items() if name not in journals)
    journals.refresh()
    if known:
        say(f"evaluate: {len(known)} answers are those of an earlier round, with the same weights")
    return {"taken_over": len(known)}


def known_answers(
    config: Config, weights: Mapping[str, Any], prompts: Mapping[str, Any]
) -> dict[str, Generation]:
    """What arms of the same weights have answered in the evaluations of earlier rounds, by request.

    `weights` identify the arms, `prompts` the held-out prompts. An evaluation counts where it is
    complete and had the same prompts, model settings, engine, decodings, length limit and seed.
    """
    decides = _decides(config.model_dump(mode="json"))
    known: dict[str, Generation] = {}
    for number in range(config.round - 1, 0, -1):
        folder = phase_dir(config.at_round(number), "evaluate")
        if not (folder / MANIFEST).exists():
            continue
        before = read_json(folder / FINGERPRINT)["inputs"]
        made_with = _decides(read_json(folder / MANIFEST)["config"])
        if before["prompts"] != prompts or made_with != decides:
            continue
        same = {arm for arm, identity in weights.items() if before["weights"].get(arm) == identity}
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
    evaluate = config["evaluate"]
    return {
        "engine": evaluate["engine"] or config["sample"]["engine"],
        "decodings": evaluate["decodings"],
        "max_new_tokens": evaluate["max_new_tokens"],
        "model": config["model"],
        "seed": config["run"]["seed"],
    }
