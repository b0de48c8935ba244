"""Preference pairs from the judge phase, or from data sources."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue, TypeAdapter

from dpo_dist.config import (
    DataPreferences,
    DataSource,
    JudgedPreferences,
    MixtureSource,
    Preferences,
    PreferenceSource,
    UltraFeedbackPreferences,
)
from dpo_dist.data.hygiene import CONTROL_TOKEN
from dpo_dist.data.leakage import overlaps
from dpo_dist.data.pair_formats import WHOLE_PROMPT
from dpo_dist.data.pairs import pairs_in
from dpo_dist.data.prompts import content_digest, exact_digest, seeded_share
from dpo_dist.data.readers import source_name
from dpo_dist.data.rows import read_rows, source_identity, write_parquet
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, PreferencePair, Prompt, Sampled
from dpo_dist.system.console import counted, say

JUDGED_FILE = Path("preferences") / "pairs.parquet"
TOKEN_ID = np.dtype("<i4")  # of the ids in `Sampled`
_TOKENS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class SourceCounts:
    """The pairs of a source that were kept and, by reason, dropped."""

    name: str
    kept: int
    dropped: Counter[str]


@dataclass(frozen=True)
class PreferenceSet:
    """Training and validation pairs; `dropped` counts the dropped rows by reason, and `sources` the
    pairs of each source."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    dropped: Counter[str] = field(default_factory=Counter)
    sources: tuple[SourceCounts, ...] = ()


@dataclass
class _Source:
    """A source with its pairs that are still kept."""

    source: PreferenceSource
    pairs: list[PreferencePair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def keep(self, kept: list[PreferencePair], reason: str) -> None:
        self.dropped[reason] += len(self.pairs) - len(kept)
        self.pairs = kept


def preference_sources(
    config: Preferences, judge_dir: Path
) -> tuple[list[PreferenceSource], PreferenceSource | None]:
    """(the data sources of the training pairs, that of the validation pairs if it is separate)."""
    match config:
        case JudgedPreferences():
            return [PreferenceSource(path=judge_dir / JUDGED_FILE)], None
        case UltraFeedbackPreferences():
            splits = {"train_prefs": config.limit, "test_prefs": config.validation_limit}
            train, validation = (
                PreferenceSource(dataset=config.dataset, split=split, limit=limit)
                for split, limit in splits.items()
            )
            return [train], validation
        case DataPreferences():
            return list(config.sources), config.validation


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
    `DataError` for damaged rows, for a source of a mixture without pairs, and if no training pairs
    are left.
    """
    given, separate = preference_sources(config, judge_dir)
    judged = isinstance(config, JudgedPreferences)
    sources = [_read(source, judged) for source in given]
    _drop_contradictions(sources)
    for source in sources:
        _drop_leaks(source, held_out)
    _draw(sources, seed)
    pairs = [pair for source in sources for pair in source.pairs]
    if separate is not None:
        train, other = pairs, _read(separate, judged)
        _drop_contradictions([other])
        _drop_leaks(other, held_out)
        trained = {content_digest(pair.prompt) for pair in train}
        kept = [pair for pair in other.pairs if content_digest(pair.prompt) not in trained]
        other.keep(kept, "validation_leak")
        sources, validation = [*sources, other], other.pairs
    else:
        assert not isinstance(config, UltraFeedbackPreferences)
        prompts = _validation_prompts(
            pairs, config.validation_fraction, seed, independent=same_in_every_round
        )
        train = [pair for pair in pairs if content_digest(pair.prompt) not in prompts]
        validation = [pair for pair in pairs if content_digest(pair.prompt) in prompts]
    counts = tuple(_counts(source) for source in sources)
    dropped: Counter[str] = sum((source.dropped for source in counts), Counter())
    if not train:
        raise DataError(f"no preference pairs are left to train on (dropped: {dict(dropped)})")
    if not judged:
        for found in counts:
            _report(found)
    return PreferenceSet(train, validation, dropped, counts)


def preferences_identity(config: Preferences, judge_dir: Path) -> list[dict[str, JsonValue]]:
    """The identity of the pairs in a fingerprint."""
    train, validation = preference_sources(config, judge_dir)
    return [source_identity(source) for source in (*train, validation) if source is not None]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as parquet in TRL's conversational preference format. The column `sampled` has
    the token ids (lists of int32) and the engine's log-probs. Prompts with more than roles and
    texts are also written whole, as JSON text in another column."""
    rows = (
        {
            "prompt_id": pair.prompt_id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "sampled": _sampled_row(pair.sampled),
            WHOLE_PROMPT: ""
            if all(turn.is_plain for turn in pair.prompt)
            else _PROMPT.dump_json(pair.prompt).decode(),
        }
        for pair in pairs
    )
    write_parquet(path, rows)


def packed(ids: Sequence[int]) -> bytes:
    """Token ids as they are in `Sampled`."""
    return np.array(ids, TOKEN_ID).tobytes()


_PROMPT = TypeAdapter(tuple[Message, ...])


def _judged(source: DataSource) -> Iterator[PreferencePair]:
    """The pairs that `write_pairs` has written."""
    for row in read_rows(source):
        values = row.values
        (chosen,), (rejected,) = values["chosen"], values["rejected"]
        whole = values[WHOLE_PROMPT]
        yield PreferencePair(
            prompt_id=values["prompt_id"],
            prompt=_PROMPT.validate_json(whole)
            if whole
            else tuple(Message(**turn) for turn in values["prompt"]),
            chosen=chosen["content"],
            rejected=rejected["content"],
            sampled=_sampled(values["sampled"]),
        )


def _read(source: PreferenceSource, judged: bool) -> _Source:
    found = _Source(source)
    for pair in _judged(source) if judged else pairs_in(source):
        if reason := pair if isinstance(pair, str) else _drop_reason(pair):
            found.dropped[reason] += 1
        else:
            assert isinstance(pair, PreferencePair)
            found.pairs.append(pair)
    return found


def _drop_leaks(source: _Source, held_out: Sequence[Prompt]) -> None:
    if not held_out:
        return
    prompts = list(dict.fromkeys(pair.prompt for pair in source.pairs))
    found = overlaps(prompts, [prompt.messages for prompt in held_out])
    leaks = {prompt for prompt, overlap in zip(prompts, found, strict=True) if overlap}
    source.keep([pair for pair in source.pairs if pair.prompt not in leaks], "evaluation_overlap")


def _drop_reason(pair: PreferencePair) -> str | None:
    chosen, rejected = pair.answers
    if chosen == rejected:
        return "identical"
    if any(isinstance(answer, str) and not answer.strip() for answer in pair.answers):
        return "empty"
    if CONTROL_TOKEN.search(pair.chosen) or CONTROL_TOKEN.search(pair.rejected):
        return "control_token"
    return None


def _drop_contradictions(sources: Sequence[_Source]) -> None:
    """Drop duplicates, and pairs of which one prefers A to B and another B to A."""
    distinct: dict[tuple[str, object, object], PreferencePair] = {}
    for source in sources:
        kept = []
        for pair in source.pairs:
            key = (exact_digest(pair.prompt), *pair.answers)
            if key not in distinct:
                distinct[key] = pair
                kept.append(pair)
        source.keep(kept, "duplicate")
    wrong = {
        id(pair)
        for (prompt, chosen, rejected), pair in distinct.items()
        if (prompt, rejected, chosen) in distinct
    }
    for source in sources:
        source.keep([pair for pair in source.pairs if id(pair) not in wrong], "contradiction")


def _draw(sources: Sequence[_Source], seed: int) -> None:
    """Draw from each source of a weighted mixture as many pairs as its weight asks for."""
    weighted = [source for source in sources if isinstance(source.source, MixtureSource)]
    for source in weighted:
        if not source.pairs:
            raise DataError(
                f"{source_name(source.source)}: no pairs are left for the mixture "
                f"(dropped: {dict(+source.dropped)})"
            )
    weights = [
        own.weight
        for source in weighted
        if isinstance(own := source.source, MixtureSource) and own.weight is not None
    ]
    if not weights:
        return
    scale = min(len(s.pairs) / weight for s, weight in zip(weighted, weights, strict=True))
    for number, (source, weight) in enumerate(zip(weighted, weights, strict=True)):
        size = min(round(scale * weight), len(source.pairs))
        if size == 0:
            raise DataError(
                f"{source_name(source.source)}: its weight {weight:g} leaves no pair of it in the "
                f"mixture of {counted(round(scale * sum(weights)), 'pair')}"
            )
        drawn = sorted(random.Random(f"{seed}/{number}").sample(range(len(source.pairs)), size))
        source.keep([source.pairs[index] for index in drawn], "not_drawn")


def _counts(source: _Source) -> SourceCounts:
    return SourceCounts(source_name(source.source), len(source.pairs), +source.dropped)


def _report(source: SourceCounts) -> None:
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in source.dropped.items())
    say(
        f"{source.name}: {counted(source.kept, 'pair')}" + (f"; dropped: {dropped}" * bool(dropped))
    )


def _sampled_row(sampled: Sampled | None) -> dict[str, object]:
    """The column `sampled`. Its parts have one type, even if the first rows are empty."""
    empty = Sampled(
        prompt=b"", chosen=b"", rejected=b"", chosen_log_prob=nan, rejected_log_prob=nan
    )
    values = (sampled or empty).model_dump()
    return values | {key: np.frombuffer(values[key], TOKEN_ID) for key in _TOKENS}


def _sampled(values: dict[str, Any]) -> Sampled | None:
    """What `_sampled_row` has written."""
    if not values["chosen"]:
        return None
    return Sampled(**(values | {key: packed(values[key]) for key in _TOKENS}))


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
