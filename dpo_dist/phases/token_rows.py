"""Preference pairs as rows of token ids, written as they come.

Sixty thousand pairs are sixty million tokens: gigabytes, as Python's integers. A batch of them is
in memory at a time, and of all the others only what the phase has to know.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_dist.data.chat import answers_ids
from dpo_dist.data.rows import write_parquet
from dpo_dist.storage.records import PreferencePair
from dpo_dist.training.reference import row_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256  # pairs that are tokenized together


@dataclass
class TokenRows:
    """A parquet file of token ids (`TrainingJob.rows`), without columns where there are no rows.

    `lengths` are the rows' tokens, prompt and both completions; `largest` is the largest token.
    """

    path: Path
    lengths: array[int] = field(default_factory=lambda: array("i"))
    largest: int = -1

    def __len__(self) -> int:
        return len(self.lengths)


def write_token_rows(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    max_length: int,
    dropped: Counter[str],
) -> TokenRows:
    """Tokenize pairs; those that do not fit are counted in `dropped`, never cut."""
    written = TokenRows(path)

    def noted() -> Iterator[dict[str, Any]]:
        for row in token_rows(tokenizer, pairs, max_length, dropped):
            written.lengths.append(row["tokens"])
            columns = (row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected"))
            written.largest = max(written.largest, *(int(ids.max()) for ids in columns))
            yield row

    write_parquet(path, noted())
    return written


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[PreferencePair],
    max_length: int,
    dropped: Counter[str],
) -> Iterator[dict[str, Any]]:
    """`id, row, tokens, prompt_ids, chosen_ids, rejected_ids` of every pair that fits; ids are
    int32 arrays."""
    waiting = iter(pairs)
    while batch := list(islice(waiting, BATCH)):
        asked = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in batch]
        for pair, ids in zip(batch, answers_ids(tokenizer, asked), strict=True):
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
                }
