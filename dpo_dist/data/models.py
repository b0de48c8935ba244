"""Models by path or Hub id: whether their files can serve, and what tells one from another."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.data.digests import weights_digest
from dpo_dist.errors import ModelError


def check_model(model: str) -> None:
    """Refuse a directory that is no whole model with safe weights, and a path to nowhere.

    A Hub id (owner/name) is believed. Raises `ModelError`.
    """
    path = Path(model)
    if path.exists():
        if not (path / "config.json").exists():
            raise ModelError(f"{path}: neither a model (config.json) nor an adapter")
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"{path}: no .safetensors weights (pickled weights are never loaded)")
    elif not is_hub_id(model):
        raise ModelError(f"{model}: no such model")


def is_hub_id(model: str) -> bool:
    """Whether a model's name can be one of the Hub, and no path."""
    path = Path(model)
    of_a_path = path.exists() or path.is_absolute() or model.startswith(".")
    return not of_a_path and model.count("/") == 1


def model_identity(model: str) -> str:
    """The digest of a model's weights; a Hub id stands for itself."""
    path = Path(model)
    return weights_digest(path) if path.is_dir() else f"hub:{model}"
