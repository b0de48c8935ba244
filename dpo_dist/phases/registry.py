"""The interface of a phase, and all phases by name."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from dpo_dist.config import EngineConfig
from dpo_dist.phases.evaluate import EvaluatePhase
from dpo_dist.phases.judge import JudgePhase
from dpo_dist.phases.report import ReportPhase
from dpo_dist.phases.sample import SamplePhase
from dpo_dist.phases.sft import SftPhase
from dpo_dist.phases.train import TrainPhase
from dpo_dist.runs.run import PHASES as PHASE_NAMES
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.storage.manifest import PhaseResult
from dpo_dist.system.ranks import Shard


class Phase(Protocol):
    """A part of a run. It may read the directories of other phases and writes only its own.
    `sections` are the sections of the run file that its work depends on."""

    @property
    def name(self) -> str: ...

    @property
    def sections(self) -> tuple[str, ...]: ...

    def inputs(self, run: Run) -> dict[str, JsonValue]:
        """The digests of everything that the phase reads, for its fingerprint. Raises `UserError`
        if something is missing."""
        ...

    def run(self, run: Run, out: PhaseDirectory) -> PhaseResult | None:
        """Do the work that is left. Returns None if other shards are not done yet. A training phase
        works in rank 0 of its training (`training.worker`)."""
        ...


@runtime_checkable
class ShardedPhase(Phase, Protocol):
    """A phase whose answers can be generated in shards. `journals` is the first part of the name of
    each shard's journal."""

    @property
    def journals(self) -> str: ...

    def engine(self, run: Run) -> EngineConfig:
        """The configuration of the engine that generates the answers."""
        ...

    def expected(self, run: Run, shard: Shard) -> int:
        """The number of answers of a shard, including those to prompts that are too long."""
        ...


PHASES: dict[str, Phase] = {
    "sft": SftPhase(),
    "sample": SamplePhase(),
    "judge": JudgePhase(),
    "train": TrainPhase(),
    "evaluate": EvaluatePhase(),
    "report": ReportPhase(),
}
assert tuple(PHASES) == PHASE_NAMES
SHARDED = frozenset(name for name, phase in PHASES.items() if isinstance(phase, ShardedPhase))
