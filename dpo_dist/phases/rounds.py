"""What a round shares with those before it: prompts that are cut up, answers that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_dist.artifacts import FINGERPRINT, MANIFEST, read_json, read_records
from dpo_dist.config import Config
from dpo_dist.data.prompts import read_prompts, split_prompts
from dpo_dist.phases.runs import phase_dir
from dpo_dist.records import Generation, Prompt


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


def known_answers(
    config: Config, weights: Mapping[str, Any], prompts: Mapping[str, Any]
) -> list[Generation]:
    """What arms of the same weights have answered in the evaluations of earlier rounds.

    `weights` identify the arms, `prompts` the held-out prompts. An evaluation counts where it is
    complete and had the same prompts, model settings, engine, decodings, length limit and seed.
    """
    known: dict[tuple[str, int, str], Generation] = {}
    for number in range(config.round - 1, 0, -1):
        folder = phase_dir(config.at_round(number), "evaluate")
        if not (folder / MANIFEST).exists():
            continue
        before = read_json(folder / FINGERPRINT)["inputs"]
        made_with = Config.model_validate(read_json(folder / MANIFEST)["config"])
        if before["prompts"] != prompts or _decides(made_with) != _decides(config):
            continue
        same = {arm for arm, identity in weights.items() if before["weights"].get(arm) == identity}
        for answer in read_records(folder / "generations.jsonl", Generation):
            if answer.arm in same:
                known.setdefault((answer.arm, answer.decoding, answer.prompt_id), answer)
    return list(known.values())


def _decides(config: Config) -> dict[str, Any]:
    """What decides an arm's answers, besides its weights and the prompts."""
    evaluate = config.evaluate
    assert evaluate is not None
    engine = evaluate.engine or (config.sample.engine if config.sample else None)
    return {
        "engine": engine,
        "decodings": evaluate.decodings,
        "max_new_tokens": evaluate.max_new_tokens,
        "model": config.model,
        "seed": config.run.seed,
    }
