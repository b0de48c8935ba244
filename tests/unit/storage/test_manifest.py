"""A phase's directory is complete once it has its manifest."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.storage.artifacts import MANIFEST, PhaseDirectory, phase_directory, read_json
from dpo_dist.storage.figures import read_figures
from dpo_dist.storage.manifest import Counts, Manifest, Origin, PhaseResult, write_manifest

ORIGIN = Origin(seed=17, versions={"torch": "2.13.0"}, git="abc", config={"run": {"name": "r"}})


class Sampled(PhaseResult):
    """The result of a phase with a figure of its own."""

    engine: str


def complete(out: PhaseDirectory) -> None:
    counts = Counts(received=2, kept=1, dropped={"tie": 1})
    write_manifest(out, Sampled(counts=counts, engine="x"), ORIGIN)


def test_a_directory_is_complete_only_with_its_manifest(tmp_path: Path) -> None:
    with phase_directory(tmp_path / "sample", {"a": 1}) as out:
        assert not out.complete
    with phase_directory(tmp_path / "sample", {"a": 1}) as out:
        complete(out)
    with phase_directory(tmp_path / "sample", {"a": 1}) as out:
        assert out.complete
    manifest = read_json(tmp_path / "sample" / MANIFEST)
    assert manifest.pop("wall_seconds") >= 0
    assert manifest == {
        "schema_version": 1,
        "phase": "sample",
        "counts": {"in": 2, "kept": 1, "dropped": {"tie": 1}},
        "engine": "x",
        **ORIGIN.model_dump(),
    }


def test_a_manifest_is_read_back_with_what_every_phase_says(tmp_path: Path) -> None:
    with phase_directory(tmp_path / "sample", {"a": 1}) as out:
        complete(out)
    manifest = read_figures(tmp_path / "sample" / MANIFEST, Manifest)
    assert (manifest.phase, manifest.counts.received, manifest.counts.kept) == ("sample", 2, 1)
    assert manifest.counts.dropped == {"tie": 1} and manifest.counts.kept_inconsistent is None
    assert (manifest.seed, manifest.git, manifest.config) == (17, "abc", ORIGIN.config)


def test_wall_time_adds_up_over_interruptions(tmp_path: Path) -> None:
    with phase_directory(tmp_path / "p", {}) as out:
        pass
    (tmp_path / "p" / ".seconds").write_text("100.0")
    with phase_directory(tmp_path / "p", {}) as out:
        complete(out)
    assert 100 <= read_json(tmp_path / "p" / MANIFEST)["wall_seconds"] < 101
    assert not (tmp_path / "p" / ".seconds").exists(), "the manifest has the sum"
