"""Preference pairs from the judge phase, from local files or from UltraFeedback-binarized."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from dpo_dist.config import (
    DataSource,
    JudgedPreferences,
    PathPreferences,
    Preferences,
    UltraFeedbackPreferences,
)
from dpo_dist.data.hygiene import CONTROL_TOKEN
from dpo_dist.data.leakage import overlaps
from dpo_dist.data.prompts import content_digest, seeded_share
from dpo_dist.data.rows import (
    Row,
    check_text,
    messages_of,
    read_rows,
    source_identity,
    turns_of,
    write_parquet,
)
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, PreferencePair, Prompt, Sampled

JUDGED_FILE = Path("preferences") / "pairs.parquet"
TOKEN_ID = np.dtype("<i4")  # of the ids in `Sampled`
_TOKENS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PreferenceSet:
    """Training and validation pairs; `dropped` counts the dropped rows by reason."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    dropped: Counter[str] = field(default_factory=Counter)


def preference_sources(config: Preferences, judge_dir: Path) -> list[DataSource]:
    """The data sources of a preferences section: training first, then validation if separate."""
    match config:
        case JudgedPreferences():
            return [DataSource(path=judge_dir / JUDGED_FILE)]
        case UltraFeedbackPreferences():
            splits = {"train_prefs": config.limit, "test_prefs": config.validation_limit}
            return [
                DataSource(dataset=config.dataset, split=split, limit=limit)
                for split, limit in splits.items()
            ]
        case PathPreferences():
            validation = config.validation_path
            separate = [DataSource(path=validation)] if validation is not None else []
            return [DataSource(path=config.path, limit=config.limit), *separate]


def load_preferences(
    config: Preferences,
    judge_dir: Path,
    seed: int,
    held_out: Sequence[Prompt] = (),
    *,
    same_in_every_round: bool = False,
) -> PreferenceSet:
    """Read and check the pairs of `config`.

    Without separate validation data, a seeded `validation_fraction` of the prompts is used for
    validation, with all their pairs. With `same_in_every_round`, each prompt is drawn by its
    content only, so that it has the same role in every round; the fraction then holds on average.
    Pairs whose prompt overlaps with the evaluation's prompts, `held_out`, are dropped. Raises
    `DataError` for damaged rows, and if no training pairs are left.
    """
    sources = preference_sources(config, judge_dir)
    dropped: Counter[str] = Counter()
    judged = isinstance(config, JudgedPreferences)
    pairs, *others = (_read_pairs(source, held_out, dropped, judged) for source in sources)
    if others:
        train, (validation,) = pairs, others
        trained = {content_digest(pair.prompt) for pair in train}
        kept = [pair for pair in validation if content_digest(pair.prompt) not in trained]
        dropped["validation_leak"], validation = len(validation) - len(kept), kept
    else:
        assert not isinstance(config, UltraFeedbackPreferences)
        prompts = _validation_prompts(
            pairs, config.validation_fraction, seed, independent=same_in_every_round
        )
        train = [pair for pair in pairs if content_digest(pair.prompt) not in prompts]
        validation = [pair for pair in pairs if content_digest(pair.prompt) in prompts]
    dropped = +dropped  # removes counts of 0
    if not train:
        raise DataError(f"no preference pairs are left to train on (dropped: {dict(dropped)})")
    return PreferenceSet(train, validation, dropped)


def preferences_identity(config: Preferences, judge_dir: Path) -> list[dict[str, JsonValue]]:
    """The identity of the pairs in a fingerprint."""
    return [source_identity(source) for source in preference_sources(config, judge_dir)]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as parquet in TRL's conversational preference format. The column `sampled`, which
    TRL ignores, has the token ids (lists of int32) and the engine's log-probs."""
    rows = (
        {
            "prompt_id": pair.prompt_id,
            "prompt": [message.model_dump() for message in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "sampled": _sampled_row(pair.sampled),
        }
        for pair in pairs
    )
    write_parquet(path, rows)


def packed(ids: Sequence[int]) -> bytes:
    """Token ids as they are in `Sampled`."""
    return np.array(ids, TOKEN_ID).tobytes()


def _read_pairs(
    source: DataSource, held_out: Sequence[Prompt], dropped: Counter[str], judged: bool
) -> list[PreferencePair]:
    pairs: list[PreferencePair] = []
    for row in read_rows(source):
        pair = _sampled(_pair(row), row) if judged else _pair(row)
        if reason := _drop_reason(pair):
            dropped[reason] += 1
        else:
            pairs.append(pair)
    pairs = _without_contradictions(pairs, dropped)
    if not held_out:
        return pairs
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    found = overlaps(prompts, [prompt.messages for prompt in held_out])
    leaks = {prompt for prompt, overlap in zip(prompts, found, strict=True) if overlap}
    kept = [pair for pair in pairs if pair.prompt not in leaks]
    dropped["evaluation_overlap"] += len(pairs) - len(kept)
    return kept


def _drop_reason(pair: PreferencePair) -> str | None:
    if pair.chosen == pair.rejected:
        return "identical"
    if not pair.chosen.strip() or not pair.rejected.strip():
        return "empty"
    if CONTROL_TOKEN.search(pair.chosen) or CONTROL_TOKEN.search(pair.rejected):
        return "control_token"
    return None


def _without_contradictions(
    pairs: list[PreferencePair], dropped: Counter[str]
) -> list[PreferencePair]:
    """The pairs without duplicates, and without those that prefer A to B and also B to A."""
    distinct: dict[tuple[str, str, str], PreferencePair] = {}
    for pair in pairs:
        distinct.setdefault((content_digest(pair.prompt), pair.chosen, pair.rejected), pair)
    kept = [
        pair
        for (prompt, chosen, rejected), pair in distinct.items()
        if (prompt, rejected, chosen) not in distinct
    ]
    dropped["duplicate"] += len(pairs) - len(distinct)
    dropped["contradiction"] += len(distinct) - len(kept)
    return kept


def _pair(row: Row) -> PreferencePair:
    """The pair of a row. `chosen` and `rejected` are answers, or, as in UltraFeedback-binarized,
    whole conversations that start with the prompt."""
    prompt = messages_of(row, "prompt", "user")
    chosen, rejected = (_answer(row, key, prompt) for key in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        raise row.error("`chosen` and `rejected` answer different prompts")
    context = chosen[0] or prompt
    identifier = str(row.values.get("prompt_id") or content_digest(context)[:16])
    check_text(row, "prompt_id", identifier)
    return PreferencePair(
        prompt_id=identifier,
        prompt=context,
        chosen=chosen[1],
        rejected=rejected[1],
    )


def _sampled_row(sampled: Sampled | None) -> dict[str, object]:
    """The column `sampled`. Its parts have one type, even if the first rows are empty."""
    empty = Sampled(
        prompt=b"", chosen=b"", rejected=b"", chosen_log_prob=nan, rejected_log_prob=nan
    )
    values = (sampled or empty).model_dump()
    return values | {key: np.frombuffer(values[key], TOKEN_ID) for key in _TOKENS}


def _sampled(pair: PreferencePair, row: Row) -> PreferencePair:
    """The pair with what `write_pairs` has written in the column `sampled`."""
    values = row.values["sampled"]
    if not values["chosen"]:
        return pair
    ids = {key: packed(values[key]) for key in _TOKENS}
    return pair.model_copy(update={"sampled": Sampled(**(values | ids))})


def _answer(row: Row, key: str, prompt: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """(the turns before the answer, the answer) of a column."""
    value = row.values.get(key)
    if isinstance(value, str):
        check_text(row, key, value)
        return (), value
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        raise row.error(f"`{key}` is missing or empty")
    # An empty answer is not an error: the pair is dropped and counted.
    answer = value[-1].get("content")
    if value[-1].get("role") != "assistant" or not isinstance(answer, str):
        raise row.error(f"`{key}` must end with an assistant turn")
    check_text(row, key, answer)
    before = turns_of(row, key, value[:-1])
    if before and before[-len(prompt) :] != prompt and before[-1].content != prompt[-1].content:
        raise row.error(f"`{key}` does not start with the row's prompt")
    return before, answer


def _validation_prompts(
    pairs: list[PreferencePair], fraction: float, seed: int, *, independent: bool
) -> set[str]:
    """The content digests of the validation prompts, a fraction of all prompts. `independent`: each
    prompt is drawn by its content only."""
    prompts = list(dict.fromkeys(content_digest(pair.prompt) for pair in pairs))
    if independent:
        return {prompt for prompt in prompts if seeded_share(prompt, seed) < fraction}
    random.Random(seed).shuffle(prompts)
    return set(prompts[: round(fraction * len(prompts))])
