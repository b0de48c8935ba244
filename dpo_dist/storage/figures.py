"""Figures in JSON files: typed, versioned, and validated when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from dpo_dist.errors import DataError
from dpo_dist.storage.artifacts import write_json

SCHEMA_VERSION = 1  # of every file that `write_figures` writes

F = TypeVar("F")


class Figures(BaseModel):
    """A group of figures. It is immutable; its fields are the keys in the file."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, validate_by_name=True)


def is_none(value: object) -> bool:
    """For fields that the file leaves out if they are None: `Field(None, exclude_if=is_none)`."""
    return value is None


def to_json(figures: object) -> dict[str, JsonValue]:
    """Figures (a `Figures` or a dataclass) as JSON values, in the order of the fields."""
    values: dict[str, JsonValue] = TypeAdapter(type(figures)).dump_python(figures, mode="json")
    return values


def write_figures(path: Path, figures: object) -> None:
    """Write figures and the version of their schema to a JSON file, atomically."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **to_json(figures)})


def read_figures(path: Path, kind: type[F]) -> F:
    """Read figures that `write_figures` wrote. Raises `DataError` naming the file, and the key if
    one is damaged, for damaged figures and for those of another version."""
    try:
        values: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: damaged (not JSON)") from None
    version = SCHEMA_VERSION
    if isinstance(values, dict):
        version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} was written by another version of dpo_dist (its schema_version is {version}; "
            f"this version reads {SCHEMA_VERSION})"
        )
    return parse_figures(values, kind, path)


def parse_figures(values: object, kind: type[F], source: Path | str) -> F:
    """Validate JSON values as figures. Raises `DataError` naming the source and the key."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "the content"
        raise DataError(f"{source}: damaged ({key}: {problem['msg']})") from None
