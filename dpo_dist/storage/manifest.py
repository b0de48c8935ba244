"""The fingerprint and the manifest of a phase's directory.

A phase returns a `PhaseResult`. The manifest contains that result, the time that the phase took,
and the origin of the work: versions, seed and run file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, JsonValue

from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST, PhaseDirectory, write_json
from dpo_dist.storage.figures import SCHEMA_VERSION, Figures, is_none, read_figures, to_json


class Fingerprint(Figures):
    """What a phase's work depends on: its sections of the run file, the models, the seed and the
    digests of its inputs."""

    config: dict[str, JsonValue] = Field(default_factory=dict)
    model: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0
    inputs: dict[str, JsonValue] = Field(default_factory=dict)


class Counts(Figures):
    """The numbers of records that a phase received, kept and, by reason, dropped.
    `trained_as_sampled`: the kept pairs whose tokens are those that were sampled."""

    received: int = Field(alias="in")
    kept: int
    dropped: dict[str, int] = Field(default_factory=dict)
    kept_inconsistent: int | None = Field(None, exclude_if=is_none)
    trained_as_sampled: int | None = Field(None, exclude_if=is_none)


class PhaseResult(Figures):
    """The result of a phase, for its manifest."""

    counts: Counts


class Origin(Figures):
    """The origin of a phase's work. `git` is the revision of the working directory, `config` the
    run file with all defaults."""

    seed: int
    versions: dict[str, str]
    git: str | None
    config: dict[str, JsonValue]


class Manifest(PhaseResult, Origin):
    """manifest.json. It is written last and marks the phase as complete."""

    phase: str
    wall_seconds: float


def read_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint in a phase's directory. Raises `DataError` if it is damaged."""
    return read_figures(folder / FINGERPRINT, Fingerprint)


def write_manifest(out: PhaseDirectory, result: PhaseResult, origin: Origin) -> None:
    """Mark a phase as complete."""
    figures = to_json(result)
    write_json(
        out.path / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "phase": out.phase,
            "counts": figures.pop("counts"),
            "wall_seconds": out.wall_seconds,
            **figures,
            **to_json(origin),
        },
    )
    out.forget_time()
