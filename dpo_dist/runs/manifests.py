"""The results of the phases and the manifests that contain them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import Field

from dpo_dist.config import Config
from dpo_dist.judging.audit import AuditShare
from dpo_dist.judging.canaries import CanaryRow
from dpo_dist.judging.spend import Spend
from dpo_dist.storage.artifacts import MANIFEST
from dpo_dist.storage.figures import Figures, is_none, parse_figures, read_figures
from dpo_dist.storage.manifest import Manifest, PhaseResult
from dpo_dist.training.job import TrainingOutcome


class Speed(Figures):
    """Generation speed without the start of the engine; None if no answer was generated."""

    engine_start_seconds: float | None = Field(None, exclude_if=is_none)
    first_candidate_seconds: float | None = Field(None, exclude_if=is_none)
    candidates_per_second: float | None = Field(None, exclude_if=is_none)
    tokens_per_second: float | None = Field(None, exclude_if=is_none)


class SampleResult(PhaseResult, Speed):
    """`counts` counts prompts, `candidates` their answers."""

    candidates: int
    cut_off: int
    engines: tuple[str, ...]


class JudgeResult(PhaseResult):
    """`counts` counts comparisons. `judge` is the judge's identity; `refusals` are counted by
    category."""

    judge: str
    spend: Spend | None
    refusals: dict[str, int]
    audit: tuple[AuditShare, ...]
    canaries: tuple[CanaryRow, ...]


class PairCounts(Figures):
    """Numbers of training and validation pairs."""

    train: int
    validation: int


class PairSource(Figures):
    """A source of pairs: the pairs kept before tokenization, and by reason those dropped."""

    name: str
    kept: int
    dropped: dict[str, int]


class TrainResult(PhaseResult, TrainingOutcome):
    """`counts` counts pairs, `sources` those of each source. `reference` is the reference model's
    name in reports."""

    pairs: PairCounts
    sources: tuple[PairSource, ...] = ()
    reference: str
    processes: int


class ScorerSpend(Figures):
    """A judge of single answers: its label, identity and cost, and the number of answers without a
    score, by reason."""

    label: str
    judge: str
    spend: Spend | None
    missing: dict[str, int]


class EvaluateResult(PhaseResult):
    """`counts` counts prompts, `generations` the answers of all arms, and `taken_over` those reused
    from another evaluation. `judge` is the identity of the judge that compared the arms, if any."""

    generations: int
    engines: tuple[str, ...]
    taken_over: int | None = Field(None, exclude_if=is_none)
    cut_off: int
    judge: str | None
    spend: Spend | None = None
    judge_scores: tuple[ScorerSpend, ...]
    tokens_per_second: float | None = Field(None, exclude_if=is_none)


class SampleManifest(SampleResult, Manifest):
    """The manifest of a complete sample phase."""


class JudgeManifest(JudgeResult, Manifest):
    """The manifest of a complete judge phase."""


class TrainManifest(TrainResult, Manifest):
    """The manifest of a complete train phase."""


class EvaluateManifest(EvaluateResult, Manifest):
    """The manifest of a complete evaluate phase."""


@dataclass(frozen=True)
class Manifests:
    """The manifests of a run's complete phases, except the report."""

    sft: Manifest | None = None
    sample: SampleManifest | None = None
    judge: JudgeManifest | None = None
    train: TrainManifest | None = None
    evaluate: EvaluateManifest | None = None

    @classmethod
    def read(cls, folders: Iterable[Path]) -> Manifests:
        """Read the manifests of the complete phases among these directories. Raises `DataError` for
        a damaged manifest."""
        names = {field.name for field in fields(cls)}
        found = {
            folder.name: read_manifest(folder)
            for folder in folders
            if folder.name in names and (folder / MANIFEST).exists()
        }
        return cls(**found)  # type: ignore[arg-type]  # `read_manifest` chooses the class by name

    def __iter__(self) -> Iterator[Manifest]:
        """Yield the manifests in the order of the phases."""
        found = (getattr(self, field.name) for field in fields(self))
        return (manifest for manifest in found if manifest is not None)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete phase; the name of its directory decides the class."""
    kinds: dict[str, type[Manifest]] = {
        "sample": SampleManifest,
        "judge": JudgeManifest,
        "train": TrainManifest,
        "evaluate": EvaluateManifest,
    }
    return read_figures(folder / MANIFEST, kinds.get(folder.name, Manifest))


def config_of(manifest: Manifest) -> Config:
    """The run file that a phase ran with. Raises `DataError` if it does not fit this version's
    schema."""
    return parse_figures(manifest.config, Config, f"the run file of the phase `{manifest.phase}`")
