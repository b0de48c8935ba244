"""Reads run.yaml and applies overrides. Errors name the key and suggest the nearest valid one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dpo_dist import config as schema
from dpo_dist.config import Config
from dpo_dist.errors import ConfigError
from dpo_dist.system.console import hide


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run file and apply overrides such as "train.beta=0.3". Raises `ConfigError` naming the
    key; for an unknown key it suggests the nearest valid one."""
    values = _read_yaml(path)
    for override in overrides:
        _set(values, override)
    try:
        config = Config.model_validate(values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        lines = [_describe(problem, values) for problem in error.errors()]
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    for variable in config.key_variables:
        hide(variable)
    return config


def _read_yaml(path: Path) -> dict[str, JsonValue]:
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


def _set(values: dict[str, JsonValue], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as train.beta=0.3")
    *parents, last = key.split(".")
    for parent in parents:
        section = values.get(parent)
        if section is None:
            section = values[parent] = {}
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
        values = section
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--set {override}: {text} is not valid YAML: {reason}") from None


def _describe(problem: ErrorDetails, values: dict[str, JsonValue]) -> str:
    parts = [str(part) for part in problem["loc"] if not _is_tag(part, problem, values)]
    key = ".".join(parts) or "the run file"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], _all_keys(), n=1, cutoff=0.5)
        return f"{key}: unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


def _is_tag(part: str | int, problem: ErrorDetails, values: dict[str, JsonValue]) -> bool:
    """Whether `part` of an error's location is the tag of a union (`lora`, `vllm`), which pydantic
    inserts, and not a key of the file."""
    node: JsonValue = values
    for step in problem["loc"]:
        if isinstance(node, dict) and isinstance(step, str) and step in node:  # noqa: SIM114
            node = node[step]
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
        elif step == part:
            return problem["type"] == "value_error" or problem["loc"][-1] != part
    return False


def _all_keys() -> list[str]:
    sections = (
        value
        for value in vars(schema).values()
        if isinstance(value, type) and issubclass(value, BaseModel)
    )
    return sorted({key for section in sections for key in section.model_fields})
