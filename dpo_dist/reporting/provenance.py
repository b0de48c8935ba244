"""Where the texts of a run came from, as its model card says it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from dpo_dist.config import (
    Config,
    DataPreferences,
    DataSource,
    JudgedPreferences,
    Preferences,
    UltraFeedbackPreferences,
)
from dpo_dist.reporting.tables import decoding_name

Source: TypeAlias = DataSource | Preferences


def provenance(config: Config, held_out: int) -> list[str]:
    """The sources of the texts. For a local file only its name is shown."""
    found = []
    if config.sft is not None:
        found.append(f"Demonstrations (SFT): {named(config.sft.data)}.")
    if not isinstance(config.preferences, JudgedPreferences):
        found.append(f"Preference pairs: {named(config.preferences)}.")
    elif (sample := config.sample) is not None:
        slots = ", ".join(decoding_name(slot) for slot in sample.slots)
        found.append(
            f"Prompts: {named(sample.prompts)}; {len(sample.slots)} answers each from the "
            f"model that DPO started from ({slots})."
        )
    if config.evaluate is not None:
        number = f", {held_out} of them" if held_out else ""
        found.append(
            f"Held-out prompts: {named(config.evaluate.prompts)}{number}; "
            "preference pairs whose prompts overlap with them were left out."
        )
    return found


def datasets_of(config: Config) -> list[str]:
    """The Hub datasets that a run was trained on."""
    preferences = config.preferences
    judged = isinstance(preferences, JudgedPreferences)
    sources = [
        config.sft.data if config.sft else None,
        *(preferences.sources if isinstance(preferences, DataPreferences) else [preferences]),
        config.sample.prompts if judged and config.sample else None,
    ]
    return [
        source.dataset
        for source in sources
        if isinstance(source, DataSource | UltraFeedbackPreferences) and source.dataset
    ]


def named(source: Source) -> str:
    """The name of a Hub dataset, or of a local file without its folder, which may be private."""
    match source:
        case DataPreferences(mixture=(_, *_) as mixture):
            return ", ".join(map(named, mixture))
        case DataSource(path=Path() as path):
            return f"the file {path.name}"
        case DataSource():
            return f"{source.dataset} ({source.split})"
        case UltraFeedbackPreferences():
            return source.dataset
        case JudgedPreferences():
            return source.source
