"""Checks models by path or Hub id, and computes digests of their weights.

Reading the weights of a large model takes minutes, and every phase and worker needs their digest,
so digests are cached. A cached digest is valid while the file's path, size, modification time,
change time and inode are the same. The change time cannot be set back, so a copy with an old
modification time is read again.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from dpo_dist.errors import ModelError
from dpo_dist.storage.artifacts import directory_digest, file_digest, read_json, write_json
from dpo_dist.system.console import say

SETTINGS = (
    *("adapter_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"),
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json"),
)
KEPT_BYTES = 64 * 2**20  # digests of smaller files are not cached on disk
ANNOUNCED_BYTES = 2 * 10**9  # reading more than this takes seconds and is announced
# A file that changed more recently may change again without a new time stamp, since the clock of
# the file system is coarse.
SETTLED_NANOSECONDS = 2 * 10**9

Stamp = tuple[int, int, int, int]

_read: dict[tuple[Path, Stamp], str] = {}


def weights_digest(folder: Path) -> str:
    """`directory_digest` of a directory's safetensors files, with cached digests."""
    unread = sum(
        stamp[0]
        for path in folder.glob("*.safetensors")
        if path.is_file() and _known(path.resolve(), stamp := _stamp(path.stat())) is None
    )
    if unread >= ANNOUNCED_BYTES:
        say(f"{folder}: reading {unread / 1e9:.0f} GB of weights for their digest")
    return directory_digest(folder, "*.safetensors", _digest)


def settings_digest(folder: Path) -> str:
    """A digest of the files that decide, besides the weights, what a model or an adapter samples:
    tokenizer, chat template, end tokens, and the adapter's settings."""
    digest = hashlib.sha256()
    for name in SETTINGS:
        if (folder / name).is_file():
            digest.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    path = path.resolve()
    with path.open("rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        if (known := _known(path, stamp)) is not None:
            return known
        settled = time.time_ns() - max(stamp[1:3]) > SETTLED_NANOSECONDS
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if settled and _stamp(os.fstat(file.fileno())) == stamp:
            _keep(path, stamp, found)
    return found


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _known(path: Path, stamp: Stamp) -> str | None:
    if (path, stamp) in _read:
        return _read[path, stamp]
    if stamp[0] < KEPT_BYTES:
        return None
    try:
        entry = read_json(_place(path))
        same = entry["path"] == str(path) and entry["stamp"] == list(stamp)
        return str(entry["sha256"]) if same else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # no cached digest, or a damaged one


def _keep(path: Path, stamp: Stamp, digest: str) -> None:
    _read[path, stamp] = digest
    if stamp[0] >= KEPT_BYTES:
        with suppress(OSError):  # the cache is not writable
            write_json(_place(path), {"path": str(path), "stamp": list(stamp), "sha256": digest})


def _place(path: Path) -> Path:
    """The file in the user's cache for the digest of `path`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return cache / "dpo_dist" / "digests" / f"{name}.json"


def check_model(model: str) -> None:
    """Raise `ModelError` unless a path is a whole model with safetensors weights. Whether a Hub id
    (owner/name) exists is not checked."""
    path = Path(model)
    if path.exists():
        if not (path / "config.json").exists():
            raise ModelError(f"{path}: neither a model (config.json) nor an adapter")
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"{path}: no .safetensors weights (pickled weights are never loaded)")
    elif not is_hub_id(model):
        raise ModelError(f"{model}: no such model")


def check_unquantized(model: str) -> None:
    """Raise `ModelError` if a model's weights are quantized, which training does not support. One
    that is not on this machine is not checked."""
    path = Path(model) / "config.json"
    if is_hub_id(model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
        path = Path(found) if isinstance(found, str) else path
    if path.exists() and (quantization := read_json(path).get("quantization_config")):
        raise ModelError(
            f"{model}: its weights are quantized ({quantization.get('quant_method')}). Train from "
            "the unquantized model; `method: {type: lora, quantization: nf4}` quantizes it on load."
        )


def is_hub_id(model: str) -> bool:
    """Whether a model's name has the form of a Hub id and is not a path."""
    path = Path(model)
    is_path = path.exists() or path.is_absolute() or model.startswith(".")
    return not is_path and model.count("/") == 1


def model_identity(model: str) -> str:
    """The digest of a model's weights, or its Hub id."""
    path = Path(model)
    return weights_digest(path) if path.is_dir() else f"hub:{model}"
