"""Where a run keeps its phases, and which weights each arm stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.artifacts import directory_digest, file_digest
from dpo_dist.config import (
    ClaudeJudge,
    Config,
    HumanJudge,
    JsonSchemaMetric,
    JudgeKind,
    Metric,
    MetricJudge,
    OpenAiJudge,
    RewardModelJudge,
)
from dpo_dist.data.chat import check_adapter
from dpo_dist.data.models import check_model, model_identity
from dpo_dist.errors import DataError

PHASES = ("sft", "sample", "judge", "train", "evaluate", "report")
POINT_PHASES = ("train", "evaluate")  # what a point of a sweep does itself
SWEEP = "sweep"


@dataclass(frozen=True)
class Weights:
    """A model (a path or Hub id), and a LoRA adapter on top of it or None."""

    model: str
    adapter: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What tells these weights from any others: the digests of their files."""
        adapter = directory_digest(self.adapter, "*.safetensors") if self.adapter else None
        return {"model": model_identity(self.model), "adapter": adapter}


def run_root(config: Config) -> Path:
    """The directory that holds the phases' directories."""
    return config.run.output_dir / config.run.name


def phase_dir(config: Config, phase: str) -> Path:
    """A phase's directory: `<run>/<phase>`, or `<run>/sweep/<point>/<phase>` for what a point of
    a sweep does itself."""
    root = run_root(config)
    if config.run.point is None or phase not in POINT_PHASES:
        return root / phase
    return root / SWEEP / config.run.point / phase


def evaluations(config: Config) -> list[Path]:
    """The evaluate phase's directories of a run and of the points of its sweep, this one's own
    left out."""
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
        "report": config.evaluate is not None and config.run.point is None,
    }
    return [phase for phase in PHASES if wanted[phase]]


def arm_weights(config: Config, arm: str) -> Weights:
    """The weights of an arm: "base", "sft" or "dpo".

    Without an SFT model the arm "sft" is the base. Raises `ModelError` for weights that are
    not there and for an adapter of another base.
    """
    if arm == "base":
        return _weights(config.model.base, config.model.base)
    if arm == "sft":
        trained = config.model.sft
        if trained == "phase":
            trained = str(run_root(config) / "sft" / "model")
        return _weights(trained or config.model.base, config.model.base)
    on_top_of = arm_weights(config, "sft").model
    return _weights(str(phase_dir(config, "train") / "model"), on_top_of)


def judge_files(judge: JudgeKind) -> dict[str, str]:
    """Digests of what a judge's section names: a rubric, its metrics' schemas, or a model. A
    sheet is none: it is filled in while the phase waits."""
    match judge:
        case ClaudeJudge() | OpenAiJudge():
            return _digests([judge.rubric])
        case MetricJudge():
            return metric_files(judge.metrics)
        case RewardModelJudge():
            check_model(judge.model)
            return {"model": model_identity(judge.model)}
        case HumanJudge():
            return {}


def metric_files(metrics: Iterable[Metric]) -> dict[str, str]:
    """Digests of the schemas that metrics name."""
    return _digests([m.schema_path for m in metrics if isinstance(m, JsonSchemaMetric)])


def _digests(paths: list[Path]) -> dict[str, str]:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    return {path.name: file_digest(path) for path in paths}


def _weights(trained: str, base: str) -> Weights:
    """Adapter or whole model, decided by what lies in the directory."""
    path = Path(trained)
    if (path / "adapter_config.json").exists():
        check_adapter(path, base)
        return Weights(base, path)
    check_model(trained)
    return Weights(trained)
