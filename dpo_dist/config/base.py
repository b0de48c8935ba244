"""What the sections of run.yaml are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator


class Section(BaseModel):
    """A part of the run file: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Section)


def required(section: S | None) -> S:
    """A section that its phase is not run without."""
    assert section is not None
    return section


class DataSource(Section):
    """Rows from a local .jsonl or .parquet file, or from a Hub dataset with its split."""

    path: Path | None = None
    dataset: str | None = None
    split: str | None = None
    limit: PositiveInt | None = None  # the first n rows only

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of `path` and `dataset`")
        if self.dataset is not None and self.split is None:
            raise ValueError("`dataset` needs its `split`")
        return self
