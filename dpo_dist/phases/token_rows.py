"""Tokenizes preference pairs into a parquet file, batch by batch.

Sixty thousand pairs have sixty million tokens, which would take gigabytes as Python integers. So
only one batch is in memory at a time, and the lengths of all rows.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from dpo_dist.data.chat import answers_ids, prompt_ids
from dpo_dist.data.preferences import TOKEN_ID
from dpo_dist.data.rows import write_parquet
from dpo_dist.estimates.throughput import Pair
from dpo_dist.storage.records import PreferencePair
from dpo_dist.training.reference import row_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256  # pairs that are tokenized together

Ids: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int32]]"


class TokenRow(TypedDict):
    """A preference pair as token ids; `tokens` counts the prompt and both completions. A witness is
    the sampling engine's log-prob of this completion (nats), NaN if there is none."""

    id: str
    row: str
    tokens: int
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    chosen_witness: float
    rejected_witness: float


@dataclass
class TokenRows:
    """A parquet file of token ids (`TrainingJob.rows`); without rows it has no columns. `lengths`
    are the `tokens` of all rows, `prompts` and `chosen` sums of theirs; `largest` is the largest
    token id; `as_sampled` counts the rows whose completions are the sampled tokens."""

    path: Path
    lengths: array[int] = field(default_factory=lambda: array("i"))
    prompts: int = 0
    chosen: int = 0
    largest: int = -1
    as_sampled: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mean(self) -> Pair:
        """The mean lengths of a pair. There must be rows."""
        prompt, chosen, whole = self.prompts, self.chosen, sum(self.lengths)
        return Pair(*(n / len(self) for n in (prompt, chosen, whole - prompt - chosen)))


def write_token_rows(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    max_length: int,
    dropped: Counter[str],
) -> TokenRows:
    """Tokenize pairs; those that are too long are counted in `dropped`, not truncated."""
    written = TokenRows(path)

    def rows() -> Iterator[TokenRow]:
        for row, sampled in _rows(tokenizer, pairs, max_length, dropped):
            written.lengths.append(row["tokens"])
            written.prompts += len(row["prompt_ids"])
            written.chosen += len(row["chosen_ids"])
            written.as_sampled += sampled
            columns = (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
            written.largest = max(written.largest, *(int(ids.max()) for ids in columns))
            yield row

    write_parquet(path, rows())
    return written


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    max_length: int,
    dropped: Counter[str],
) -> Iterator[TokenRow]:
    """The row of each pair that fits: the sampled tokens, or for answers from elsewhere those that
    the chat template renders. Pairs that it changes are counted as `not_rendered`."""
    return (row for row, _ in _rows(tokenizer, pairs, max_length, dropped))


def _rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    max_length: int,
    dropped: Counter[str],
) -> Iterator[tuple[TokenRow, bool]]:
    """(a row, whether its completions are the sampled tokens)."""
    remaining = iter(pairs)
    while batch := list(islice(remaining, BATCH)):
        for pair, ids in zip(batch, _tokenized(tokenizer, batch), strict=True):
            if ids is None:
                dropped["not_rendered"] += 1
                continue
            prompt, chosen, rejected = ids
            if len(prompt) >= max_length:
                dropped["prompt_too_long"] += 1
            elif len(prompt) + max(len(chosen), len(rejected)) > max_length:
                dropped["too_long"] += 1
            elif np.array_equal(chosen, rejected):
                dropped["identical"] += 1
            else:
                sampled = pair.sampled
                yield (
                    {
                        "id": pair.prompt_id,
                        "row": row_key(*(part.tolist() for part in ids)),
                        "tokens": len(prompt) + len(chosen) + len(rejected),
                        "prompt_ids": prompt,
                        "chosen_ids": chosen,
                        "rejected_ids": rejected,
                        "chosen_witness": sampled.chosen_log_prob if sampled else math.nan,
                        "rejected_witness": sampled.rejected_log_prob if sampled else math.nan,
                    },
                    sampled is not None,
                )


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, batch: Sequence[PreferencePair]
) -> Iterator[tuple[Ids, Ids, Ids] | None]:
    """(prompt, chosen, rejected) of each pair; None if the template cannot render it."""
    rendered = iter(
        answers_ids(tokenizer, [(p.prompt, p.answers) for p in batch if p.sampled is None])
    )
    for pair in batch:
        if pair.sampled is None:
            found = next(rendered)
            yield found and (_array(found[0]), _array(found[1][0]), _array(found[1][1]))
            continue
        sampled = pair.sampled
        prompt, chosen, rejected = (
            np.frombuffer(part, TOKEN_ID)
            for part in (sampled.prompt, sampled.chosen, sampled.rejected)
        )
        # If every slot added to the prompt, nothing was sampled from the prompt itself.
        plain = prompt if len(prompt) else _array(prompt_ids(tokenizer, pair.prompt))
        yield plain, chosen, rejected


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
