"""Which phases a run has, in which order, and where each keeps its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config import Config, Optimization
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.storage.artifacts import MANIFEST
from dpo_dist.system.console import counted

PHASES = ("sft", "sample", "judge", "train", "evaluate", "report")
ROUND_PHASES = ("sample", "judge", "train", "evaluate")  # what every round does again
# Between the seeds of two rounds' samples: a resumed phase adds what it has done to its own.
SEEDS_APART = 100_000_007
POINT_PHASES = ("train", "evaluate", "report")  # what a point of a sweep does itself
SWEEP = "sweep"


@dataclass(frozen=True)
class Step:
    """A phase, and the round that it belongs to or 0."""

    phase: str
    round: int = 0

    def __str__(self) -> str:
        return f"round-{self.round}/{self.phase}" if self.round else self.phase


def run_root(config: Config) -> Path:
    """The directory that holds the phases' directories."""
    return config.run.output_dir / config.run.name


def phase_dir(config: Config, phase: str) -> Path:
    """A phase's directory: `<run>/<phase>`; `<run>/round-<n>/<phase>` for the phases of the round
    that the configuration is at, `<run>/sweep/<point>/<phase>` for what a point of a sweep does
    itself."""
    root = run_root(config)
    if config.run.point is not None and phase in POINT_PHASES:
        return root / SWEEP / config.run.point / phase
    if config.rounds is None or phase not in ROUND_PHASES:
        return root / phase
    assert 1 <= config.round <= config.rounds.count, config.round
    return root / str(Step(phase, config.round))


def round_folders(root: Path) -> list[Path]:
    """The directories of a run's rounds, as far as they have begun, in order."""
    found = (path for path in root.glob("round-*") if path.name.removeprefix("round-").isdigit())
    return sorted(found, key=lambda path: int(path.name.removeprefix("round-")))


def evaluations(config: Config) -> list[Path]:
    """The evaluate phase's directories that may have answered what this one asks: those of earlier
    rounds, or those of the run and of its sweep's other points."""
    if config.rounds is not None:
        earlier = range(config.round - 1, 0, -1)
        return [phase_dir(config.at_round(number), "evaluate") for number in earlier]
    if config.run.point is None:
        return []
    root = run_root(config)
    found = [root / "evaluate", *sorted((root / SWEEP).glob("*/evaluate"))]
    return [path for path in found if path != phase_dir(config, "evaluate")]


def phases_of(config: Config) -> list[str]:
    """The phases that a run file asks for, in order."""
    judged = config.preferences.source == "judged"
    wanted = {
        "sft": config.sft is not None,
        "sample": config.sample is not None and judged,
        "judge": config.judge is not None and judged,
        "train": config.train is not None,
        "evaluate": config.evaluate is not None,
        "report": config.evaluate is not None,
    }
    return [phase for phase in PHASES if wanted[phase]]


def steps_of(config: Config) -> list[Step]:
    """The phases in order, those of a round as often as there are rounds."""
    phases = phases_of(config)
    if config.rounds is None:
        return [Step(phase) for phase in phases]
    again = [phase for phase in phases if phase in ROUND_PHASES]
    return [
        *(Step(phase) for phase in phases if phase == "sft"),
        *(Step(phase, n) for n in range(1, config.rounds.count + 1) for phase in again),
        *(Step(phase) for phase in phases if phase == "report"),
    ]


def trainings(config: Config) -> dict[str, Optimization]:
    """The sections of the phases that train, by phase."""
    sections: dict[str, Optimization | None] = {"sft": config.sft, "train": config.train}
    return {phase: section for phase, section in sections.items() if section is not None}


def check_complete(config: Config, phase: str) -> Path:
    """The manifest of a phase that another one needs. Raises `DataError` where it has not ended."""
    path = phase_dir(config, phase) / MANIFEST
    if not path.exists():
        raise DataError(f"{path.parent} is not complete: run the phase `{phase}` first")
    return path


def to_be_trained(config: Config) -> bool:
    """Whether a training of this run is not complete yet."""
    return any(
        not (phase_dir(config.at_round(step.round), step.phase) / MANIFEST).exists()
        for step in steps_of(config)
        if step.phase in trainings(config)
    )


def select_round(config: Config, phase: str, number: int | None) -> Config:
    """The configuration at the round that a command names. Raises `ConfigError` where it has to
    name one, or may not."""
    if config.rounds is None:
        if number is not None:
            raise ConfigError(f"--round {number}: the run file has no `rounds`")
        return config
    if phase not in ROUND_PHASES:
        return config
    count = config.rounds.count
    if number is None:
        raise ConfigError(
            f"the run file has {counted(count, 'round')}: add --round N (1 to {count})"
        )
    if not 1 <= number <= count:
        raise ConfigError(f"--round {number}: the run file has rounds 1 to {count}")
    return config.at_round(number)


def sampling_seed(config: Config) -> int:
    """The seed of a round's candidates: with that of the round before, a policy that has hardly
    moved would give the same ones again."""
    return config.run.seed + SEEDS_APART * max(0, config.round - 1)
