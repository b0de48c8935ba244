"""Reading run.yaml: overrides, paths, and errors that name the key and the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dpo_dist import config
from dpo_dist.config import Config
from dpo_dist.errors import ConfigError
from dpo_dist.system.console import hide

# Fields whose relative paths are meant relative to the run file.
_RECIPE_PATHS = frozenset(
    {"path", "validation_path", "rubric", "prices", "schema_path", "sheet", "include_path"}
)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run file and apply overrides such as "train.beta=0.3".

    Raises `ConfigError` naming the key; an unknown key comes with the nearest right one.
    """
    values = _read_yaml(path)
    for override in overrides:
        _set(values, override)
    _anchor_paths(values, path.resolve().parent)
    try:
        found = Config.model_validate(values)
    except ValidationError as error:
        lines = [_describe(dict(problem), values) for problem in error.errors()]
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    for variable in found.key_variables:
        hide(variable)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory, not a run file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping with the section `run`, ...")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as train.beta=0.3")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"--set {override}: {text} is not valid YAML: {said}") from None


def _anchor_paths(values: Any, folder: Path) -> None:
    if isinstance(values, list):
        for value in values:
            _anchor_paths(value, folder)
    elif isinstance(values, dict):
        for key, value in values.items():
            if key in _RECIPE_PATHS and isinstance(value, str):
                values[key] = str(folder / value)
            else:
                _anchor_paths(value, folder)


def _describe(problem: dict[str, Any], values: dict[str, Any]) -> str:
    where = [str(part) for part in problem["loc"] if not _is_tag(part, problem, values)]
    key = ".".join(where) or "the run file"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], _all_keys(), n=1, cutoff=0.5)
        return f"{key}: unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}"


def _is_tag(part: str | int, problem: dict[str, Any], values: dict[str, Any]) -> bool:
    """Pydantic puts the tag of a union (`lora`, `vllm`) into the location; the file has no
    such key."""
    node: Any = values
    for step in problem["loc"]:
        inside = (
            step in node
            if isinstance(node, dict)
            else isinstance(node, list) and isinstance(step, int) and step < len(node)
        )
        if step == part and not inside:
            return bool(problem["loc"][-1] != part)
        if inside:
            node = node[step]
    return False


def _all_keys() -> list[str]:
    return sorted(set(_keys()))


def _keys() -> Iterator[str]:
    for value in vars(config).values():
        if isinstance(value, type) and issubclass(value, BaseModel):
            yield from value.model_fields
