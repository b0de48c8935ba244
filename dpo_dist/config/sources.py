"""Where rows come from: data sources, and the section `preferences`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dpo_dist.config.base import RecipePath, Section


class DataSource(Section):
    """Rows of local files, of a saved `datasets.Dataset`, or of a Hub dataset. Their format is
    recognised by the columns; docs/data.md lists the formats."""

    path: RecipePath | None = None
    """A file (.jsonl, .json, .csv, .tsv, each also with .gz, or .parquet), a glob pattern, a folder
    of such files, or a folder that `save_to_disk` wrote."""
    dataset: str | None = None
    """A dataset on the Hub; needs `split`."""
    name: str | None = None
    """The configuration of `dataset`, or of a folder."""
    split: str | None = None
    """The split of `dataset`, or a slice of it such as `train[:10%]`; the split of a folder that
    has several."""
    revision: str | None = None
    """The branch, tag or commit of `dataset`; null: its main branch."""
    columns: dict[str, str] = Field({})
    """Renames columns, from the name that a format expects to the name in the data: {prompt:
    question}."""
    ignore_columns: tuple[str, ...] = ()
    """Columns, and keys of turns, that are not used. Without it an unknown column is an error."""
    limit: PositiveInt | None = None
    """Use only the first n rows."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        self._check_place()
        return self

    def _check_place(self) -> None:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of `path` and `dataset`")
        if self.dataset is not None and self.split is None:
            raise ValueError("`dataset` needs its `split`")
        if self.revision is not None and self.dataset is None:
            raise ValueError("`revision` belongs to a `dataset` on the Hub")
        if self.path is not None and self.split is not None and "[" in self.split:
            raise ValueError("a slice needs a `dataset` on the Hub; use `limit` for files")

    @field_validator("columns")
    @classmethod
    def _once(cls, columns: dict[str, str]) -> dict[str, str]:
        if len(set(columns.values())) < len(columns):
            raise ValueError("a column of the data is mapped twice")
        return columns


class PreferenceSource(DataSource):
    """A source of preference pairs."""

    min_margin: PositiveFloat | None = None
    """Use only pairs whose `margin`, or score of chosen minus score of rejected, is at least this;
    null: all."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Pairs of a row with several ranked answers: the best against the worst, or all pairs."""


class MixtureSource(PreferenceSource):
    """A source of a mixture."""

    weight: PositiveFloat | None = None
    """Share of the mixture's pairs, relative to the other weights. No pair is repeated, so the
    source with the fewest pairs for its weight is used whole. null in all sources: all pairs."""


class JudgedPreferences(Section):
    """The pairs that the judge phase writes."""

    source: Literal["judged"] = "judged"
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts whose pairs are used for validation."""


class UltraFeedbackPreferences(Section):
    """HuggingFaceH4/ultrafeedback_binarized; its split `test_prefs` is used for validation."""

    source: Literal["ultrafeedback"]
    dataset: str = "HuggingFaceH4/ultrafeedback_binarized"
    """Hub id of a dataset with the same columns and splits."""
    limit: PositiveInt | None = None
    """Use only the first n pairs of `train_prefs`."""
    validation_limit: PositiveInt = 500
    """Use only the first n pairs of `test_prefs`."""


class DataPreferences(PreferenceSource):
    """Your own pairs or public ones, from `path`, from `dataset`, or from the sources of a
    `mixture`."""

    source: Literal["path", "dataset", "mixture"]
    """The key that says where the pairs come from."""
    mixture: tuple[MixtureSource, ...] = ()
    """The sources of a mixture, each with its own keys."""
    validation: PreferenceSource | None = None
    """The source of the validation pairs; null: see `validation_fraction`."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Without `validation`: share of the prompts whose pairs are used for validation."""

    @model_validator(mode="after")
    def _one_source(self) -> DataPreferences:
        given = {"path": self.path, "dataset": self.dataset, "mixture": self.mixture or None}
        if given[self.source] is None:
            raise ValueError(f"source: {self.source} needs the key `{self.source}`")
        if self.source != "mixture":
            if self.mixture:
                raise ValueError("a `mixture` needs source: mixture")
            self._check_place()
            return self
        own = [name for name in PreferenceSource.model_fields if name in self.model_fields_set]
        if own:
            raise ValueError(f"`{own[0]}` belongs to each source of the mixture")
        weighted = [source.weight is not None for source in self.mixture]
        if any(weighted) and not all(weighted):
            raise ValueError("give a `weight` to every source of the mixture, or to none")
        return self

    @property
    def sources(self) -> tuple[PreferenceSource, ...]:
        """The sources of the training pairs."""
        return self.mixture or (self,)


Preferences: TypeAlias = Annotated[
    JudgedPreferences | UltraFeedbackPreferences | DataPreferences, Field(discriminator="source")
]
