"""The amount of data of a run, and the source of each number.

Rows that are on this machine are counted and measured. Other numbers come from the command line or
from published figures. Nothing is downloaded.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

from dpo_dist.config import (
    DataPreferences,
    DataSource,
    UltraFeedbackPreferences,
    VllmEngine,
    required,
)
from dpo_dist.data.chat import completion_ids, load_tokenizer, prompt_ids
from dpo_dist.data.preferences import load_preferences
from dpo_dist.data.prompts import iterate_prompts, read_demonstrations
from dpo_dist.data.readers import source_name
from dpo_dist.errors import ModelError
from dpo_dist.estimates.throughput import Pair
from dpo_dist.runs.run import Run
from dpo_dist.storage.records import Message
from dpo_dist.system.console import counted
from dpo_dist.system.options import Option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Source = Literal["counted", "measured", "given", "stated", "assumed"]


@dataclass(frozen=True)
class Quantity:
    """A number and its source: `counted` in the run's own files, `measured` by a finished run,
    `given` on the command line, `stated` by the publisher of a dataset, or `assumed`; `note` gives
    details."""

    value: int | float
    source: Source
    note: str = ""


def _count(text: str) -> int:
    """Parse a number of rows, which is at least one."""
    count = int(text)
    if count < 1:
        raise ArgumentTypeError(f"{text}: must be at least 1")
    return count


@dataclass(frozen=True)
class Given:
    """Options about data that is not on this machine; None: not given."""

    pairs: Annotated[
        int | None,
        Option("number of preference pairs, if they are not on this machine", "N", parse=_count),
    ] = None
    tokens_per_pair: Annotated[
        float | None, Option("mean tokens per pair, counting the prompt once", "M")
    ] = None
    prompts: Annotated[
        int | None,
        Option("number of prompts to sample, if they are not on this machine", "N", parse=_count),
    ] = None
    eval_prompts: Annotated[
        int | None,
        Option("number of held-out prompts, if they are not on this machine", "N", parse=_count),
    ] = None


CHARACTERS_PER_TOKEN = 4.0  # in English; used if the policy's tokenizer is not on this machine
SAMPLED_ROWS = 200  # maximum number of rows that are tokenized, without the longest row
# UltraFeedback-binarized: the number of rows of train_prefs, the length of a prompt relative to a
# completion, and the mean tokens per completion. The median of prompt + chosen is 409, but long
# answers raise the mean: log-normal lengths with that median (benchmarks/synthetic_pairs.py) have
# 349 tokens per completion. The dataset card is consistent with this: 405,688,662 bytes for 61,135
# rows, each with four copies of the prompt and two of the chosen answer, correspond to 346 tokens
# per completion at four characters per token.
ULTRAFEEDBACK_PAIRS = 61_000
PROMPT_TO_COMPLETION = 0.42
COMPLETION_TOKENS = 349
PROMPT_TOKENS = COMPLETION_TOKENS * PROMPT_TO_COMPLETION

Row = tuple[Sequence[Message], tuple[str, ...]]


@dataclass(frozen=True)
class Texts:
    """Rows with a prompt and its completions, and their lengths in tokens. `prompt` and
    `completions` are means; `longest` has the prompt and the completions of the longest row.
    `source` and `how` say where the lengths come from."""

    count: Quantity
    prompt: float
    completions: tuple[float, ...] = ()
    longest: tuple[float, ...] = ()
    source: Source = "counted"
    how: str = ""

    @property
    def tokens(self) -> float:
        """The mean tokens per row."""
        return self.prompt + sum(self.completions)


@dataclass(frozen=True)
class Answering:
    """What a phase generates in each of `rounds`: `per_prompt` answers to each prompt, of `length`
    tokens on average, on engines that start `starts` times. `rate` is the tokens per second of an
    engine; None if it was not measured."""

    phase: str
    prompts: Texts
    per_prompt: int
    length: Quantity
    engine: VllmEngine
    rate: float | None = None
    rounds: int = 1
    starts: int = 1

    @property
    def tokens(self) -> float:
        """All tokens of a round's answers."""
        return self.prompts.count.value * self.per_prompt * self.length.value


@dataclass(frozen=True)
class Pairs:
    """The preference pairs for training, and the number of additional pairs for validation.
    `source` and `how` say where the lengths come from."""

    count: Quantity
    validation: int
    mean: Pair
    longest: Pair
    source: Source
    how: str


def prompts_of(source: DataSource, given: int | None, model: str) -> Texts | None:
    """The prompts of a source; None if they are not on this machine and their number is unknown."""
    if source.path is not None:
        return _measured(
            ((p.messages, ()) for p in iterate_prompts(source)), source.path.name, model
        )
    count = given or source.limit
    if count is None:
        return None
    known = Quantity(count, "given", "--prompts" if given else "limit")
    return Texts(known, PROMPT_TOKENS, source="assumed", how="as in UltraFeedback")


def demonstrations_of(source: DataSource, model: str) -> Texts | None:
    """The rows of the sft phase; None if they are not on this machine."""
    if source.path is None:
        return None
    rows = ((d.prompt, (d.completion.content,)) for d in read_demonstrations(source))
    return _measured(rows, source.path.name, model)


def pairs_of(
    run: Run, given: Given, sampling: Answering | None = None, kept: float = 1.0
) -> Pairs | None:
    """The pairs for `train`; None if their number is unknown. Judged pairs do not exist yet: the
    plan assumes that a share `kept` of the sampled prompts gives one pair of candidates each."""
    preferences = run.config.preferences
    if given.pairs is None and isinstance(preferences, DataPreferences):
        here = all(source.path is not None for source in preferences.sources)
        return _read_pairs(run, preferences) if here else None
    if given.pairs is not None or isinstance(preferences, UltraFeedbackPreferences):
        return _stated_pairs(run, given)
    if sampling is None:
        return None
    assert preferences.source == "judged"
    prompts, candidate = sampling.prompts, sampling.length.value
    whole = prompts.count.value * kept
    validation = round(whole * preferences.validation_fraction)
    long = prompts.longest[0] if prompts.longest else prompts.prompt
    most = required(run.config.sample).max_new_tokens
    count = Quantity(whole - validation, "assumed", "one pair per prompt, except for validation")
    mean = Pair(prompts.prompt, candidate, candidate)
    longest = _trained(Pair(long, most, most), run)
    return Pairs(count, validation, mean, longest, "assumed", "a prompt and two candidates")


def _read_pairs(run: Run, preferences: DataPreferences) -> Pairs:
    found = load_preferences(preferences, Path(), run.config.run.seed)
    rows = ((p.prompt, (p.chosen, p.rejected)) for p in found.train)
    names = ", ".join(Path(source_name(source)).name for source in preferences.sources)
    texts = _measured(rows, names, run.config.model.base)
    mean, longest = Pair(texts.prompt, *texts.completions), _trained(Pair(*texts.longest), run)
    return Pairs(texts.count, len(found.validation), mean, longest, texts.source, texts.how)


def _stated_pairs(run: Run, given: Given) -> Pairs:
    stated = run.config.preferences
    if given.pairs is not None:
        count = Quantity(given.pairs, "given", "--pairs")
    else:
        assert isinstance(stated, UltraFeedbackPreferences)
        whole = min(stated.limit or ULTRAFEEDBACK_PAIRS, ULTRAFEEDBACK_PAIRS)
        count = Quantity(whole, "stated", "UltraFeedback-binarized's train_prefs")
    completion: float = COMPLETION_TOKENS
    source: Source = "stated"
    how = "UltraFeedback-binarized's means: 349 per answer, 0.42 of that per prompt"
    if given.tokens_per_pair is not None:
        completion = given.tokens_per_pair / (2 + PROMPT_TO_COMPLETION)
        source, how = "given", "--tokens-per-pair; a prompt has 0.42 of an answer's tokens"
    mean = _trained(Pair(PROMPT_TO_COMPLETION * completion, completion, completion), run)
    rest = required(run.config.train).max_length - mean.prompt
    validation = stated.validation_limit if isinstance(stated, UltraFeedbackPreferences) else 0
    return Pairs(count, validation, mean, Pair(mean.prompt, rest, rest), source, how)


def _trained(pair: Pair, run: Run) -> Pair:
    """The pair, at most as long as `train.max_length` allows; longer pairs are not trained on."""
    most = required(run.config.train).max_length
    prompt = min(pair.prompt, most / 2)
    return Pair(prompt, min(pair.chosen, most - prompt), min(pair.rejected, most - prompt))


def _measured(rows: Iterable[Row], name: str, model: str) -> Texts:
    """The rows of files. Tokens are counted in evenly spaced rows and in the longest row."""
    kept = list(rows)
    sampled = kept[:: -(-len(kept) // SAMPLED_ROWS)]
    try:
        tokenizer = load_tokenizer(model) if Path(model).is_dir() else None
        lengths = [_lengths(row, tokenizer) for row in sampled]
    except ModelError:  # no chat template, or one that cannot render the rows
        tokenizer = None
        lengths = [_lengths(row, tokenizer) for row in sampled]
    prompt, *completions = (fmean(column) for column in zip(*lengths, strict=True))
    estimated = f"{CHARACTERS_PER_TOKEN:g} characters per token"
    return Texts(
        count=Quantity(len(kept), "counted", name),
        prompt=prompt,
        completions=tuple(completions),
        longest=tuple(_lengths(max(kept, key=_characters), tokenizer)),
        source="counted" if tokenizer else "assumed",
        how=f"{counted(len(sampled), 'row')} tokenized" if tokenizer else estimated,
    )


def _lengths(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> list[float]:
    """The tokens of the prompt and of each completion."""
    messages, completions = row
    if tokenizer is None:
        prompt = sum(len(message.content) for message in messages)
        return [n / CHARACTERS_PER_TOKEN for n in (prompt, *map(len, completions))]
    answers = [len(completion_ids(tokenizer, messages, text)[1]) for text in completions]
    return [float(len(prompt_ids(tokenizer, messages))), *map(float, answers)]


def _characters(row: Row) -> int:
    return sum(len(message.content) for message in row[0]) + sum(map(len, row[1]))
