"""What arms have answered in other evaluations with the same weights: it is not generated again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_dist.artifacts import FINGERPRINT, MANIFEST, read_json, read_records
from dpo_dist.config import Config
from dpo_dist.records import Generation


def known_answers(
    config: Config, reads: Mapping[str, Any], evaluations: Iterable[Path]
) -> list[Generation]:
    """The answers of arms with the same weights in other evaluate phases' directories.

    `reads` is what this evaluation reads (`evaluate.inputs`). Another counts where it is complete
    and had the same prompts, engine, precision, decodings, length limit and seed.
    """
    known: dict[tuple[str, int, str], Generation] = {}
    for folder in evaluations:
        if not (folder / MANIFEST).exists():
            continue
        before = read_json(folder / FINGERPRINT)["inputs"]
        try:
            made_with = Config.model_validate(read_json(folder / MANIFEST)["config"])
        except ValidationError:
            continue  # another version's run file
        if before["prompts"] != reads["prompts"] or _decides(made_with) != _decides(config):
            continue
        weights = reads["weights"]
        same = {arm for arm in weights if before["weights"].get(arm) == weights[arm]}
        for answer in read_records(folder / "generations.jsonl", Generation):
            if answer.arm in same:
                known.setdefault((answer.arm, answer.decoding, answer.prompt_id), answer)
    return list(known.values())


def _decides(config: Config) -> dict[str, Any]:
    """What decides an arm's answers, besides its weights and the prompts."""
    evaluate = config.evaluate
    assert evaluate is not None
    return {
        "engine": evaluate.engine or (config.sample.engine if config.sample else None),
        "decodings": evaluate.decodings,
        "max_new_tokens": evaluate.max_new_tokens,
        "dtype": config.model.dtype,
        "seed": config.run.seed,
    }
