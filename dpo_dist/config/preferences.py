"""The section `preferences`: where the pairs to train on come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from dpo_dist.config.base import Section


class JudgedPreferences(Section):
    """The pairs that the judge phase decided."""

    source: Literal["judged"] = "judged"
    validation_fraction: float = Field(0.1, ge=0, lt=1)


class UltraFeedbackPreferences(Section):
    """HuggingFaceH4/ultrafeedback_binarized; validation is its own `test_prefs`."""

    source: Literal["ultrafeedback"]
    dataset: str = "HuggingFaceH4/ultrafeedback_binarized"
    limit: PositiveInt | None = None
    validation_limit: PositiveInt = 500


class PathPreferences(Section):
    """A local .jsonl or .parquet with the columns prompt, chosen, rejected."""

    source: Literal["path"]
    path: Path
    validation_path: Path | None = None
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    limit: PositiveInt | None = None


Preferences = Annotated[
    JudgedPreferences | UltraFeedbackPreferences | PathPreferences, Field(discriminator="source")
]
