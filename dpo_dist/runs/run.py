"""A run: its run file, and the round or point of a sweep that a process works on.

<output_dir>/<name>/run.log                   what `run` and `sweep` have printed, with the time
<output_dir>/<name>/<phase>/                  a phase
<output_dir>/<name>/round-<n>/<phase>/        a phase of a round
<output_dir>/<name>/sweep/<point>/<phase>/    a phase of a point of a sweep
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Arm, Config, Optimization, required
from dpo_dist.data.prompts import iterate_prompts, read_prompts, split_prompts
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import ConfigError, DataError, ModelError
from dpo_dist.runs.weights import Weights, weights_at
from dpo_dist.storage.artifacts import MANIFEST
from dpo_dist.storage.records import Prompt
from dpo_dist.system.console import counted
from dpo_dist.tracking import PROJECT, TrackedRun, tracked_run

PHASES = ("sft", "sample", "judge", "train", "evaluate", "report")
TRAINING = ("sft", "train")
ROUND_PHASES = ("sample", "judge", "train", "evaluate")
POINT_PHASES = ("train", "evaluate", "report")
SWEEP = "sweep"
# The distance between the sampling seeds of two rounds. It is large because a resumed phase adds
# the number of its finished answers to its seed.
SEEDS_APART = 100_000_007
_POINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{,199}")  # file systems allow 255 bytes


@dataclass(frozen=True)
class Step:
    """A phase and its round; 0 if rounds do not repeat it."""

    phase: str
    round: int = 0

    def __str__(self) -> str:
        return f"round-{self.round}/{self.phase}" if self.round else self.phase


@dataclass(frozen=True)
class Run:
    """A run file, and optionally one of its rounds (counted from 1; 0: none) or a point of a sweep.
    Raises `ConfigError` if the point's name cannot be a directory name."""

    config: Config
    round: int = 0
    point: str | None = None

    def __post_init__(self) -> None:
        if self.point is not None and not _POINT.fullmatch(self.point):
            raise ConfigError(
                f"the point {self.point!r} cannot be the name of a directory: use at most "
                "200 letters, digits and . _ = , + -"
            )

    # Directories.

    @property
    def root(self) -> Path:
        """The directory with the run's phases, rounds and sweep."""
        return self.config.run.output_dir / self.config.run.name

    @property
    def log(self) -> Path:
        """What `run` and `sweep` print."""
        return self.root / "run.log"

    @property
    def folder(self) -> Path:
        """The directory of the round, of the point, or of the run itself."""
        return self.directory("train").parent

    def directory(self, phase: str) -> Path:
        """The directory of a phase, for this round or point."""
        if self.point is not None and phase in POINT_PHASES:
            return self.root / SWEEP / self.point / phase
        if self.config.rounds is None or phase not in ROUND_PHASES:
            return self.root / phase
        assert 1 <= self.round <= self.config.rounds.count, self.round
        return self.root / str(Step(phase, self.round))

    def is_complete(self, phase: str) -> bool:
        return (self.directory(phase) / MANIFEST).exists()

    def require(self, phase: str) -> Path:
        """The directory of a phase. Raises `DataError` if the phase is not complete."""
        if self.is_complete(phase):
            return self.directory(phase)
        raise DataError(f"{self.directory(phase)} is not complete: run the phase `{phase}` first")

    def earlier_evaluations(self) -> list[Path]:
        """The directories of evaluate phases that may have answered the same requests: those of
        earlier rounds, or those of the run and of the other points of the sweep."""
        if self.config.rounds is not None:
            earlier = range(self.round - 1, 0, -1)
            return [self.at_round(number).directory("evaluate") for number in earlier]
        if self.point is None:
            return []
        found = [self.root / "evaluate", *sorted((self.root / SWEEP).glob("*/evaluate"))]
        return [path for path in found if path != self.directory("evaluate")]

    # Phases.

    @property
    def phases(self) -> list[str]:
        """The phases of the run file, in order."""
        config = self.config
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

    @property
    def steps(self) -> list[Step]:
        """The phases in order; the phases of a round occur once per round."""
        phases = self.phases
        if self.config.rounds is None:
            return [Step(phase) for phase in phases]
        rounds = range(1, self.config.rounds.count + 1)
        repeated = [phase for phase in phases if phase in ROUND_PHASES]
        return [
            *(Step(phase) for phase in phases if phase == "sft"),
            *(Step(phase, number) for number in rounds for phase in repeated),
            *(Step(phase) for phase in phases if phase == "report"),
        ]

    @property
    def trainings(self) -> dict[str, Optimization]:
        """The sections of the training phases, by phase."""
        sections: list[tuple[str, Optimization | None]]
        sections = [("sft", self.config.sft), ("train", self.config.train)]
        return {phase: section for phase, section in sections if section is not None}

    def is_trained(self) -> bool:
        """Whether every training of this run is complete."""
        return all(
            self.at_round(step.round).is_complete(step.phase)
            for step in self.steps
            if step.phase in self.trainings
        )

    def at_round(self, number: int) -> Run:
        """The run at this round."""
        return replace(self, round=number)

    def rounds(self) -> list[Run]:
        """The run at each of its rounds; empty without `rounds`."""
        count = self.config.rounds.count if self.config.rounds is not None else 0
        return [self.at_round(number + 1) for number in range(count)]

    def select_round(self, phase: str, number: int | None) -> Run:
        """The run at the round of the option --round. Raises `ConfigError` if the option is missing
        or out of range, or if the run file has no `rounds`."""
        rounds = self.config.rounds
        if rounds is None:
            if number is not None:
                raise ConfigError(f"--round {number}: the run file has no `rounds`")
            return self
        if phase not in ROUND_PHASES:
            return self
        count = rounds.count
        if number is None:
            raise ConfigError(
                f"the run file has {counted(count, 'round')}: add --round N (1 to {count})"
            )
        if not 1 <= number <= count:
            raise ConfigError(f"--round {number}: the run file has rounds 1 to {count}")
        return self.at_round(number)

    def tracked(self, phase: str) -> TrackedRun | None:
        """The W&B run of a training phase; None if it is not logged to Weights & Biases."""
        section = self.trainings.get(phase)
        if section is None or "wandb" not in section.trackers:
            return None
        project = section.args.get("project")
        at = self.directory(phase).relative_to(self.root).as_posix()
        return tracked_run(self.config.run.name, self.root, at, str(project or PROJECT))

    # Inputs.

    @property
    def sampling_seed(self) -> int:
        """The seed of the candidates. It differs by round, so that a policy that has hardly changed
        does not sample the same candidates again."""
        return self.config.run.seed + SEEDS_APART * max(0, self.round - 1)

    def prompts(self) -> Iterable[Prompt]:
        """The prompts for sampling: all of them, or the round's part."""
        config = self.config
        prompts = iterate_prompts(required(config.sample).prompts)
        if config.rounds is None or config.rounds.prompts != "split":
            return prompts
        return split_prompts(list(prompts), config.rounds.count, config.run.seed)[self.round - 1]

    @property
    def prompts_part(self) -> str | None:
        """The round's part of the prompts, for its fingerprint; None: all prompts."""
        rounds = self.config.rounds
        if rounds is None or rounds.prompts != "split":
            return None
        return f"{self.round} of {rounds.count}"

    def held_out_prompts(self) -> list[Prompt]:
        """The prompts of the evaluation; empty without `evaluate`."""
        evaluate = self.config.evaluate
        return read_prompts(evaluate.prompts) if evaluate is not None else []

    def held_out_identity(self) -> dict[str, JsonValue] | None:
        """The identity of the held-out prompts in a fingerprint."""
        evaluate = self.config.evaluate
        return source_identity(evaluate.prompts) if evaluate is not None else None

    def weights(self, arm: str) -> Weights:
        """The weights of an arm: "base", "sft" or "dpo". Without an SFT model, "sft" is the base
        model. In every round, "sft" is the initial SFT model and "dpo" the round's policy. Raises
        `ModelError` for missing weights and for an adapter of another base."""
        model = self.config.model
        if arm == "base":
            return weights_at(model.base, model.base)
        if arm == "sft":
            trained = model.sft or model.base
            if trained == "phase":
                trained = str(self.root / "sft" / "model")
            return weights_at(trained, model.base)
        return weights_at(str(self.directory("train") / "model"), self.weights("sft").model)

    def arm_weights(self, arm: Arm) -> Weights:
        """The weights of an arm: the run's own, an adapter of its base, or another model. Raises
        `ModelError` as `weights` does."""
        if arm.own is not None:
            return self.weights(arm.own)
        path = Path(str(arm.model if arm.adapter is None else arm.adapter))
        is_adapter = (path / "adapter_config.json").exists()
        if arm.adapter is None and is_adapter:
            raise ModelError(f"evaluate.arms: {arm.name}: {path} is an adapter; use `adapter`")
        if arm.adapter is not None and not is_adapter:
            raise ModelError(
                f"evaluate.arms: {arm.name}: {path} is not the folder of an adapter "
                "(no adapter_config.json)"
            )
        return weights_at(str(arm.model or path), self.config.model.base)

    def start_weights(self) -> Weights:
        """The weights that sampling and training start from: the SFT model, or the policy of the
        previous round. Raises `DataError` if that round's training is not complete."""
        if self.round <= 1:
            return self.weights("sft")
        previous = self.at_round(self.round - 1)
        if not previous.is_complete("train"):
            raise DataError(
                f"round {self.round} starts from the model trained in round {previous.round}, but "
                f"{previous.directory('train')} is not complete: run that round first "
                f"(--round {previous.round})"
            )
        return previous.weights("dpo")

    def reference_weights(self) -> Weights | None:
        """The weights of the reference; None if they are those that training starts from."""
        rounds = self.config.rounds
        if rounds is None or rounds.reference == "previous" or self.round <= 1:
            return None
        return self.weights("sft")

    @property
    def reference_name(self) -> str:
        """The reference's name in reports: "SFT", "base" or, for example, "round 1"."""
        rounds = self.config.rounds
        if rounds is not None and rounds.reference == "previous" and self.round > 1:
            return f"round {self.round - 1}"
        return "base" if self.config.model.sft is None else "SFT"


def round_folders(root: Path) -> list[Path]:
    """The existing directories of a run's rounds, in order."""
    found = (path for path in root.glob("round-*") if path.name.removeprefix("round-").isdigit())
    return sorted(found, key=lambda path: int(path.name.removeprefix("round-")))
