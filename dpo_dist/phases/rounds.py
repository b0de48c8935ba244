"""What a round shares with those before it: prompts that are cut up, answers that are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dpo_dist.artifacts import (
    FINGERPRINT,
    MANIFEST,
    Journal,
    PhaseDirectory,
    read_json,
    read_records,
)
from dpo_dist.config import Config
from dpo_dist.console import say
from dpo_dist.data.prompts import read_prompts, split_prompts
from dpo_dist.phases.runs import phase_dir
from dpo_dist.records import Generation, Prompt

AnswerKey = tuple[str, int, str]  # arm, decoding, prompt id


def round_prompts(config: Config) -> list[Prompt]:
    """The prompts that are sampled: all, or the round's part of them."""
    assert config.sample is not None
    prompts = read_prompts(config.sample.prompts)
    if not _splits(config):
        return prompts
    assert config.rounds is not None
    return split_prompts(prompts, config.rounds.count, config.run.seed)[config.round - 1]


def part_identity(config: Config) -> dict[str, Any]:
    """What says in a fingerprint which part of the prompts is sampled; nothing where all are."""
    if not _splits(config):
        return {}
    assert config.rounds is not None
    return {"part": f"{config.round} of {config.rounds.count}"}


def _splits(config: Config) -> bool:
    return config.rounds is not None and config.rounds.prompts == "split"


def take_over(
    config: Config,
    out: PhaseDirectory,
    wanted: Collection[AnswerKey],
    journal: Journal[Generation],
) -> dict[str, int]:
    """Put into the journal what earlier rounds have answered with the same weights, of what is
    `wanted`, and return the count for the manifest."""
    if config.rounds is None:
        return {}
    reads = read_json(out.path / FINGERPRINT)["inputs"]
    earlier = known_answers(config, reads["weights"], reads["prompts"])
    known = [answer for key, answer in earlier.items() if key in wanted]
    there = {_key(answer) for answer in journal.read()}
    journal.append(answer for answer in known if _key(answer) not in there)
    if known:
        say(f"evaluate: {len(known)} answers are those of an earlier round, with the same weights")
    return {"taken_over": len(known)}


def known_answers(
    config: Config, weights: Mapping[str, Any], prompts: Mapping[str, Any]
) -> dict[AnswerKey, Generation]:
    """What arms of the same weights have answered in the evaluations of earlier rounds.

    `weights` identify the arms, `prompts` the held-out prompts. An evaluation counts where it is
    complete and had the same prompts, model settings, engine, decodings, length limit and seed.
    """
    decides = _decides(config.model_dump(mode="json"))
    known: dict[AnswerKey, Generation] = {}
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
                known.setdefault(_key(answer), answer)
    return known


def _key(answer: Generation) -> AnswerKey:
    return answer.arm, answer.decoding, answer.prompt_id


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
