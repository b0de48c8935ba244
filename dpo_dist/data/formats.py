"""Recognises the format of rows by their columns. The formats are in `pair_formats.py` and
`prompts.py`; docs/data.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from dpo_dist.data.readers import Row
from dpo_dist.errors import DataError
from dpo_dist.system.console import say

Read = TypeVar("Read")

# Columns that say where a row is from or how it was rated, and columns of the recognised data sets
# that repeat other ones. No format trains on them. Any other column that a format does not use is
# an error, since it may change what the row means (such as `weight` or `images`).
HARMLESS = frozenset(
    {
        *("id", "prompt_id", "uuid", "index", "idx", "row_id", "__index_level_0__"),
        *("source", "dataset", "dataset_name", "origin", "category", "subset", "domain", "topic"),
        *("task", "task_type", "language", "lang", "url", "license", "timestamp", "created_at"),
        *("model", "models", "model_name", "chosen_model", "rejected_model", "chosen-model"),
        *("rejected-model", "model_chosen", "model_rejected", "generation_model"),
        *("generation_models", "generation_model_names", "num_turns", "turns", "num_responses"),
        *("metadata", "meta", "distilabel_metadata", "good_natured", "rationale", "rationales"),
        *("chosen_rationale", "rejected_rationale", "in_gsm8k_train", "order"),
        *("labelling_model", "labelling_prompt", "raw_labelling_response", "original_chosen"),
        *("original_rejected", "original_response", "generation_prompt"),
        *("raw_generation_responses", "raw_generation_response", "new_generations"),
        *("correct_answers", "incorrect_answers"),
        *("post_id", "upvote_ratio", "c_root_id_A", "c_root_id_B", "created_at_utc_A"),
        *("created_at_utc_B", "seconds_difference", "score_ratio"),
        # In the pairs of a finished run.
        "sampled",
    }
)
# Columns whose difference is a pair's margin: (of chosen, of rejected). See `min_margin`.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
RATINGS = frozenset(
    {"margin", "rating", "score", "score_A", "score_B", *(key for two in SCORES for key in two)}
)
# Columns that every format uses: options of the conversation, and labels of annotation tools.
OPTIONS = frozenset({"system", "system_prompt", "tools", "chat_template_kwargs", "status"})


@dataclass(frozen=True)
class Format(Generic[Read]):
    """A format: rows have `columns`, and may have `optional` ones, which it uses or which repeat
    others. `where` distinguishes formats with the same columns. `read` reads a row."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Read]
    optional: frozenset[str] = frozenset()
    where: Callable[[Mapping[str, Any]], bool] = lambda values: True

    @cached_property
    def _known(self) -> frozenset[str]:
        return OPTIONS | HARMLESS | RATINGS | self.optional | set(self.columns)

    def check(self, row: Row) -> None:
        """Raise `DataError` for a column that the format does not know."""
        for column in row.values:
            if column not in self._known:
                raise row.error(
                    f"the column `{column}` is not used in {self.name}. If it is one of the "
                    f"format's columns ({_listed(sorted({*self.columns, *self.optional, *_NAMED}))}"
                    f"), map it: `columns: {{...: {column}}}`; if it does not matter: "
                    f"`ignore_columns: [{column}]`"
                )


_NAMED = ("system", "tools", "chat_template_kwargs")
_announced: set[tuple[str, str]] = set()


def recognised(
    formats: Sequence[Format[Read]],
    row: Row,
    source: str,
    noun: str,
    before: Format[Read] | None,
) -> Format[Read]:
    """The format of a row, whose columns are checked. A new format is named in the log. `before` is
    that of the row before; a row that only lacks some of its columns has no other format. Raises
    `DataError` with the nearest format."""
    for known in formats:
        lacks = before is not None and set(known.columns) < set(before.columns)
        if row.values.keys() >= set(known.columns) and known.where(row.values) and not lacks:
            known.check(row)
            if (source, known.name) not in _announced:
                _announced.add((source, known.name))
                say(f"{source}: read as {noun}, format: {known.name}")
            return known
    raise _unrecognised(formats if before is None else [before], row, noun)


def _unrecognised(formats: Iterable[Format[Any]], row: Row, noun: str) -> DataError:
    def distance(known: Format[Any]) -> tuple[int, int]:
        missing = len(set(known.columns) - row.values.keys())
        return missing, missing - len(known.columns)

    nearest = min(formats, key=distance)
    missing = [column for column in nearest.columns if column not in row.values]
    example = (missing or nearest.columns)[0]
    return row.error(
        f"`{example}` is missing or empty: the row has {_listed(sorted(row.values)) or 'nothing'}, "
        f"and the nearest format of {noun} is {nearest.name}, with {_listed(nearest.columns)}. "
        f"Map other names with `columns: {{{example}: NAME}}`"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
