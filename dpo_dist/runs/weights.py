"""The weights of the arms, of what training starts from, and of its reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.config import Config
from dpo_dist.data.chat import check_adapter
from dpo_dist.data.digests import weights_digest
from dpo_dist.data.models import check_model, model_identity
from dpo_dist.errors import DataError
from dpo_dist.runs.directories import phase_dir, run_root
from dpo_dist.storage.artifacts import MANIFEST


@dataclass(frozen=True)
class Weights:
    """A model (a path or Hub id), and a LoRA adapter on top of it or None."""

    model: str
    adapter: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What tells these weights from any others: the digests of their files."""
        adapter = weights_digest(self.adapter) if self.adapter else None
        return {"model": model_identity(self.model), "adapter": adapter}


def arm_weights(config: Config, arm: str) -> Weights:
    """The weights of an arm: "base", "sft" or "dpo".

    Without an SFT model the arm "sft" is the base; with rounds it is the initial SFT model in all
    of them, and "dpo" is the round's policy. Raises `ModelError` for weights that are not there
    and for an adapter of another base.
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


def start_weights(config: Config) -> Weights:
    """What candidates are sampled from and training starts from: the SFT model, or the policy of
    the round before. Raises `DataError` where that one is not trained yet."""
    if config.round <= 1:
        return arm_weights(config, "sft")
    before = config.at_round(config.round - 1)
    trained = phase_dir(before, "train")
    if not (trained / MANIFEST).exists():
        raise DataError(
            f"round {config.round} starts from the model trained in round {before.round}, and "
            f"{trained} is not complete: run that round first (--round {before.round})"
        )
    return arm_weights(before, "dpo")


def reference_weights(config: Config) -> Weights | None:
    """The reference of the training, where it is not what training starts from."""
    if config.rounds is None or config.rounds.reference == "previous" or config.round <= 1:
        return None
    return arm_weights(config, "sft")


def reference_name(config: Config) -> str:
    """What the training is measured by, as reports call it: "SFT", "base" or "round 1"."""
    if config.rounds is not None and config.rounds.reference == "previous" and config.round > 1:
        return f"round {config.round - 1}"
    return "base" if config.model.sft is None else "SFT"


def _weights(trained: str, base: str) -> Weights:
    """Adapter or whole model, decided by what lies in the directory."""
    path = Path(trained)
    if (path / "adapter_config.json").exists():
        check_adapter(path, base)
        return Weights(base, path)
    check_model(trained)
    return Weights(trained)
