"""Preference pairs: judged ones, local files, and UltraFeedback-binarized."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    iterate_rows,
    messages_of,
    source_identity,
    turns_of,
    write_parquet,
)
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, PreferencePair, Prompt

JUDGED_FILE = Path("preferences") / "pairs.parquet"


@dataclass(frozen=True)
class PreferenceSet:
    """Pairs to train on and to validate on; `dropped` counts the rows left out, by reason."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    dropped: Counter[str] = field(default_factory=Counter)


def preference_sources(config: Preferences, judge_dir: Path) -> list[DataSource]:
    """The data sources that a preferences section reads: training first, then validation."""
    match config:
        case JudgedPreferences():
            return [DataSource(path=judge_dir / JUDGED_FILE)]
        case UltraFeedbackPreferences():
            return [
                DataSource(dataset=config.dataset, split="train_prefs", limit=config.limit),
                DataSource(
                    dataset=config.dataset, split="test_prefs", limit=config.validation_limit
                ),
            ]
        case PathPreferences():
            sources = [DataSource(path=config.path, limit=config.limit)]
            if config.validation_path is not None:
                sources.append(DataSource(path=config.validation_path))
            return sources


def load_preferences(
    config: Preferences,
    judge_dir: Path,
    seed: int,
    held_out: Sequence[Prompt] = (),
    *,
    same_in_every_round: bool = False,
) -> PreferenceSet:
    """Read and check the pairs that `config` names.

    A validation split of its own is kept apart; otherwise `validation_fraction` of the prompts
    (not of the rows: pairs of one prompt stay together) is held out, by a seeded draw. With
    `same_in_every_round` each prompt is drawn by itself: one that is held out in a round is
    trained on in none, whatever pairs there are, and the fraction is met on average only.
    Pairs whose prompt overlaps with the evaluation's, `held_out`, are dropped.
    Raises `DataError` for damaged rows and when nothing is left to train on.
    """
    sources = preference_sources(config, judge_dir)
    dropped: Counter[str] = Counter()
    pairs, *others = (_read_pairs(source, held_out, dropped) for source in sources)
    if others:
        train, (validation,) = pairs, others
        _forget_leaks(train, validation, dropped)
    else:
        assert not isinstance(config, UltraFeedbackPreferences)
        draw = _split_by_content if same_in_every_round else _split
        train, validation = draw(pairs, config.validation_fraction, seed)
    dropped = +dropped  # without the reasons that dropped nothing
    if not train:
        raise DataError(f"no preference pairs are left to train on (dropped: {dict(dropped)})")
    return PreferenceSet(train, validation, dropped)


def preferences_identity(config: Preferences, judge_dir: Path) -> list[dict[str, Any]]:
    """What identifies the pairs in a fingerprint."""
    return [source_identity(source) for source in preference_sources(config, judge_dir)]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as parquet in TRL's conversational preference format."""

    def turns(messages: Sequence[Message]) -> list[dict[str, str]]:
        return [message.model_dump() for message in messages]

    write_parquet(
        path,
        (
            {
                "prompt_id": pair.prompt_id,
                "prompt": turns(pair.prompt),
                "chosen": turns([Message(role="assistant", content=pair.chosen)]),
                "rejected": turns([Message(role="assistant", content=pair.rejected)]),
            }
            for pair in pairs
        ),
    )


def _read_pairs(
    source: DataSource, held_out: Sequence[Prompt], dropped: Counter[str]
) -> list[PreferencePair]:
    pairs: list[PreferencePair] = []
    for row in iterate_rows(source):
        pair = _pair(row)
        if reason := _why_not_trained_on(pair):
            dropped[reason] += 1
        else:
            pairs.append(pair)
    pairs = _without_contradictions(pairs, dropped)
    return _without_overlaps(pairs, held_out, dropped) if held_out else pairs


def _why_not_trained_on(pair: PreferencePair) -> str | None:
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
    """One of the rows that say the same; none of those that prefer A to B and B to A."""
    said: dict[tuple[str, str, str], PreferencePair] = {}
    for pair in pairs:
        said.setdefault((content_digest(pair.prompt), pair.chosen, pair.rejected), pair)
    kept = [
        pair
        for (prompt, chosen, rejected), pair in said.items()
        if (prompt, rejected, chosen) not in said
    ]
    dropped["duplicate"] += len(pairs) - len(said)
    dropped["contradiction"] += len(said) - len(kept)
    return kept


def _without_overlaps(
    pairs: list[PreferencePair], held_out: Sequence[Prompt], dropped: Counter[str]
) -> list[PreferencePair]:
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    given_away = overlaps(prompts, [prompt.messages for prompt in held_out])
    leaks = {prompt for prompt, leak in zip(prompts, given_away, strict=True) if leak}
    kept = [pair for pair in pairs if pair.prompt not in leaks]
    dropped["evaluation_overlap"] += len(pairs) - len(kept)
    return kept


def _pair(row: Row) -> PreferencePair:
    """A row whose chosen and rejected are answers, or, as in UltraFeedback-binarized, whole
    conversations that begin with the prompt."""
    prompt = messages_of(row, "prompt", "user")
    chosen, rejected = (_answer(row, key, prompt) for key in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        raise row.error("`chosen` and `rejected` answer different prompts")
    context = chosen[0] or prompt
    identifier = str(row.values.get("prompt_id") or content_digest(context)[:16])
    check_text(row, "prompt_id", identifier)
    return PreferencePair(
        prompt_id=identifier, prompt=context, chosen=chosen[1], rejected=rejected[1]
    )


def _answer(row: Row, key: str, prompt: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """(the turns before the answer, the answer)."""
    value = row.values.get(key)
    if isinstance(value, str):
        check_text(row, key, value)
        return (), value
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        raise row.error(f"`{key}` is missing or empty")
    # Only an empty answer is allowed to be empty: it is dropped and counted, not an error.
    answer = value[-1].get("content")
    if value[-1].get("role") != "assistant" or not isinstance(answer, str):
        raise row.error(f"`{key}` must end with an assistant turn")
    check_text(row, key, answer)
    before = turns_of(row, key, value[:-1])
    if before and before[-len(prompt) :] != prompt and before[-1].content != prompt[-1].content:
        raise row.error(f"`{key}` does not begin with the row's prompt")
    return before, answer


def _forget_leaks(
    train: list[PreferencePair], validation: list[PreferencePair], dropped: Counter[str]
) -> None:
    """Drop validation pairs whose prompt is trained on."""
    trained = {content_digest(pair.prompt) for pair in train}
    kept = [pair for pair in validation if content_digest(pair.prompt) not in trained]
    dropped["validation_leak"] += len(validation) - len(kept)
    validation[:] = kept


def _split(
    pairs: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    prompts = list(dict.fromkeys(content_digest(pair.prompt) for pair in pairs))
    random.Random(seed).shuffle(prompts)
    return _without(pairs, set(prompts[: round(fraction * len(prompts))]))


def _split_by_content(
    pairs: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    prompts = {content_digest(pair.prompt) for pair in pairs}
    return _without(pairs, {p for p in prompts if seeded_share(p, seed) < fraction})


def _without(
    pairs: list[PreferencePair], held_out: set[str]
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(the other pairs, those of the held-out prompts)"""
    train = [pair for pair in pairs if content_digest(pair.prompt) not in held_out]
    return train, [pair for pair in pairs if content_digest(pair.prompt) in held_out]
