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

from dpo_dist.data.chat import answers_ids
from dpo_dist.data.rows import write_parquet
from dpo_dist.estimates.throughput import Pair
from dpo_dist.storage.records import PreferencePair, Witness
from dpo_dist.training.reference import row_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256  # pairs that are tokenized together

Ids: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int32]]"


class TokenRow(TypedDict):
    """A preference pair as token ids; `tokens` counts the prompt and both completions. A witness is
    the sampling engine's log-prob of exactly this completion (nats), NaN if there is none."""

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
    token id."""

    path: Path
    lengths: array[int] = field(default_factory=lambda: array("i"))
    prompts: int = 0
    chosen: int = 0
    largest: int = -1

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
        for row in token_rows(tokenizer, pairs, max_length, dropped):
            written.lengths.append(row["tokens"])
            written.prompts += len(row["prompt_ids"])
            written.chosen += len(row["chosen_ids"])
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
    """The row of each pair that fits."""
    remaining = iter(pairs)
    while batch := list(islice(remaining, BATCH)):
        texts = [(pair.prompt, pair.answers) for pair in batch]
        for pair, ids in zip(batch, answers_ids(tokenizer, texts), strict=True):
            prompt, (chosen, rejected) = ids
            if len(prompt) >= max_length:
                dropped["prompt_too_long"] += 1
            elif len(prompt) + max(len(chosen), len(rejected)) > max_length:
                dropped["too_long"] += 1
            elif chosen == rejected:
                dropped["identical"] += 1
            else:
                yield {
                    "id": pair.prompt_id,
                    "row": row_key(prompt, chosen, rejected),
                    "tokens": len(prompt) + len(chosen) + len(rejected),
                    "prompt_ids": np.array(prompt, dtype=np.int32),
                    "chosen_ids": np.array(chosen, dtype=np.int32),
                    "rejected_ids": np.array(rejected, dtype=np.int32),
                    "chosen_witness": _witnessed(pair.chosen_witness, chosen),
                    "rejected_witness": _witnessed(pair.rejected_witness, rejected),
                }


def _witnessed(witness: Witness | None, ids: Sequence[int]) -> float:
    """A text can be tokenized differently from how it was sampled; then there is no witness."""
    return witness.log_prob if witness and witness.saw(ids) else math.nan
