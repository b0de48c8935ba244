"""Model weights, and the digests of what judges and metrics depend on, for fingerprints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Resource
from dpo_dist.data.chat import check_adapter
from dpo_dist.data.models import check_model, model_identity, settings_digest, weights_digest
from dpo_dist.errors import DataError
from dpo_dist.storage.artifacts import file_digest


@dataclass(frozen=True)
class Weights:
    """A model (a path or Hub id), and the LoRA adapter on top of it, if any."""

    model: str
    adapter: Path | None = None

    def identity(self) -> dict[str, JsonValue]:
        """The digests of the files with weights and with settings."""
        adapter = weights_digest(self.adapter) if self.adapter else None
        folders = [Path(self.model), *([self.adapter] if self.adapter else [])]
        return {
            "model": model_identity(self.model),
            "adapter": adapter,
            "settings": [settings_digest(folder) for folder in folders if folder.is_dir()],
        }


def weights_at(path: str, base: str) -> Weights:
    """The weights at a path or Hub id: an adapter for `base`, or a whole model. Raises `ModelError`
    if they are neither, or an adapter of another base."""
    folder = Path(path)
    if (folder / "adapter_config.json").exists():
        check_adapter(folder, base)
        return Weights(base, folder)
    check_model(path)
    return Weights(path)


def resource_digests(resources: Iterable[Resource]) -> dict[str, JsonValue]:
    """The digests of the files and models that judges or metrics declare, by name. Raises
    `DataError` for a missing file and `ModelError` for a missing model."""
    digests: dict[str, JsonValue] = {}
    for resource in resources:
        for name, path in resource.files.items():
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            digests[name] = file_digest(path)
        if resource.model_path is not None:
            check_model(resource.model_path)
            digests["model"] = model_identity(resource.model_path)
    return digests
