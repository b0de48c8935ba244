"""How much data a run file asks for: rows that can be read here are counted and measured, others
are taken from the command line or from published figures. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from dpo_dist.config import (
    Config,
    DataSource,
    PathPreferences,
    UltraFeedbackPreferences,
)
from dpo_dist.data.chat import completion_ids, load_tokenizer, prompt_ids
from dpo_dist.data.preferences import load_preferences
from dpo_dist.data.prompts import iterate_prompts, read_demonstrations
from dpo_dist.errors import ModelError
from dpo_dist.estimates.throughput import Pair
from dpo_dist.storage.records import Message
from dpo_dist.system.console import counted
from dpo_dist.tools.plan.figure import Figure, Given, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_A_TOKEN = 4.0  # of English, where the policy's tokenizer is not here to be asked
SAMPLED_ROWS = 200  # whose tokens are counted; the longest one is added
# UltraFeedback-binarized: rows of train_prefs, how long a prompt is in proportion to a completion,
# and the mean tokens of a completion. Its median of prompt + chosen is 409, but long answers make
# the mean: log-normal lengths with that median (benchmarks/synthetic_pairs.py) have 349 a
# completion. The dataset's card says the same in bytes: 405,688,662 for 61,135 rows, of which each
# repeats its prompt four times and has the chosen answer twice, is 346 tokens a completion at four
# characters a token.
ULTRAFEEDBACK_PAIRS = 61_000
PROMPT_TO_COMPLETION = 0.42
COMPLETION_TOKENS = 349
PROMPT_TOKENS = COMPLETION_TOKENS * PROMPT_TO_COMPLETION

Row = tuple[Sequence[Message], tuple[str, ...]]


@dataclass(frozen=True)
class Texts:
    """Rows of a prompt and its completions: how many, and their mean and greatest lengths in
    tokens. `prompt` and each of `completions` are means."""

    count: Figure
    prompt: float
    completions: tuple[float, ...] = ()
    longest: tuple[float, ...] = ()
    source: Source = "counted"  # of the lengths
    how: str = ""

    @property
    def tokens(self) -> float:
        """Of a row in the mean."""
        return self.prompt + sum(self.completions)


@dataclass(frozen=True)
class Pairs:
    """The preference pairs to train on; `validation` are evaluated on."""

    count: Figure
    validation: int
    mean: Pair
    longest: Pair
    source: Source  # of the lengths
    how: str


def prompts_of(source: DataSource, given: int | None, model: str) -> Texts | None:
    """The prompts of a source; None where they are elsewhere and nobody says how many."""
    if source.path is not None:
        return _measured(((p.messages, ()) for p in iterate_prompts(source)), source.path, model)
    count = given or source.limit
    if count is None:
        return None
    known = Figure(count, "given", "--prompts" if given else "limit")
    return Texts(known, PROMPT_TOKENS, source="assumed", how="as long as UltraFeedback's prompts")


def demonstrations_of(source: DataSource, model: str) -> Texts | None:
    """The rows of the sft phase; None where they are elsewhere."""
    if source.path is None:
        return None
    rows = ((d.prompt, (d.completion[0].content,)) for d in read_demonstrations(source))
    return _measured(rows, source.path, model)


def pairs_of(
    config: Config, given: Given, prompts: Texts | None, answer: float, kept: float
) -> Pairs | None:
    """The pairs that `train` takes. Of judged ones there are none yet: every prompt makes one,
    times `kept`, of two answers of `answer` tokens."""
    assert config.train is not None
    preferences, room = config.preferences, config.train.max_length
    if given.pairs is None and isinstance(preferences, PathPreferences):
        return _read_pairs(config, preferences)
    if given.pairs is not None or isinstance(preferences, UltraFeedbackPreferences):
        return _stated_pairs(config, given)
    if prompts is None:
        return None
    assert preferences.source == "judged"
    whole = prompts.count.value * kept
    validation = round(whole * preferences.validation_fraction)
    mean = Pair(prompts.prompt, answer, answer)
    long = prompts.longest[0] if prompts.longest else prompts.prompt
    most = config.sample.max_new_tokens if config.sample else answer
    longest = _within(Pair(long, most, most), room)
    count = Figure(whole - validation, "assumed", "a pair a prompt, less what validates")
    return Pairs(count, validation, mean, longest, "assumed", "a prompt and two such candidates")


def _read_pairs(config: Config, preferences: PathPreferences) -> Pairs:
    found = load_preferences(preferences, Path(), config.run.seed)
    rows = ((p.prompt, (p.chosen, p.rejected)) for p in found.train)
    texts = _measured(rows, preferences.path, config.model.base)
    assert config.train is not None
    longest = _within(Pair(*texts.longest), config.train.max_length)
    mean = Pair(texts.prompt, *texts.completions)
    return Pairs(texts.count, len(found.validation), mean, longest, texts.source, texts.how)


def _stated_pairs(config: Config, given: Given) -> Pairs:
    preferences = config.preferences
    assert config.train is not None
    if given.pairs is not None:
        count = Figure(given.pairs, "given", "--pairs")
    else:
        assert isinstance(preferences, UltraFeedbackPreferences)
        whole = min(preferences.limit or ULTRAFEEDBACK_PAIRS, ULTRAFEEDBACK_PAIRS)
        count = Figure(whole, "stated", "UltraFeedback-binarized's train_prefs")
    completion: float = COMPLETION_TOKENS
    source: Source = "stated"
    how = "mean of UltraFeedback-binarized: an answer 349, the prompt 0.42 of it"
    if given.tokens_per_pair is not None:
        completion = given.tokens_per_pair / (2 + PROMPT_TO_COMPLETION)
        source, how = "given", "--tokens-per-pair; the prompt 0.42 of an answer"
    room = config.train.max_length
    mean = _within(Pair(PROMPT_TO_COMPLETION * completion, completion, completion), room)
    longest = Pair(mean.prompt, room - mean.prompt, room - mean.prompt)
    validation = getattr(preferences, "validation_limit", 0)
    return Pairs(count, validation, mean, longest, source, how)


def _within(pair: Pair, room: float) -> Pair:
    """The pair as far as `max_length` lets it in: what is longer is left out of the training."""
    prompt = min(pair.prompt, room / 2)
    return Pair(prompt, min(pair.chosen, room - prompt), min(pair.rejected, room - prompt))


def _measured(rows: Iterable[Row], path: Path, model: str) -> Texts:
    """Counted rows; their tokens are counted on an even sample and on the longest of them."""
    kept = list(rows)
    sampled = kept[:: -(-len(kept) // SAMPLED_ROWS)]
    longest = max(kept, key=_characters)
    try:
        tokenizer = load_tokenizer(model) if Path(model).is_dir() else None
    except ModelError:
        tokenizer = None
    lengths = [_lengths(row, tokenizer) for row in sampled]
    means = [fmean(column) for column in zip(*lengths, strict=True)]
    source: Source = "counted" if tokenizer else "assumed"
    how = f"{counted(len(sampled), 'row')} tokenized"
    if tokenizer is None:
        how = f"{CHARACTERS_A_TOKEN:g} characters a token"
    return Texts(
        Figure(len(kept), "counted", path.name),
        means[0],
        tuple(means[1:]),
        tuple(_lengths(longest, tokenizer)),
        source,
        how,
    )


def _lengths(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> list[float]:
    """Tokens of the prompt and of each completion."""
    messages, completions = row
    if tokenizer is None:
        prompt = sum(len(message.content) for message in messages)
        return [n / CHARACTERS_A_TOKEN for n in (prompt, *map(len, completions))]
    answers = [len(completion_ids(tokenizer, messages, text)[1]) for text in completions]
    return [float(len(prompt_ids(tokenizer, messages))), *map(float, answers)]


def _characters(row: Row) -> int:
    return sum(len(message.content) for message in row[0]) + sum(map(len, row[1]))
