"""Reads run.yaml and applies overrides. Errors name the line and the key, and suggest the nearest
valid one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dpo_dist.config import Config
from dpo_dist.config.suggest import key_hint, sections_at, tags, value_hint
from dpo_dist.errors import ConfigError
from dpo_dist.storage.folders import describe, missing
from dpo_dist.system.console import hide
from dpo_dist.system.yamlfile import KeyPath, Lines, YamlError, parse_with_lines, parse_yaml

Values: TypeAlias = dict[str, JsonValue]
_OVERRIDE = 0  # in place of a line


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a run file and apply overrides such as "train.beta=0.3". Raises `ConfigError` naming the
    line and the key; for an unknown key it suggests the nearest valid one."""
    values, found = _read_yaml(path)
    lines = dict(found)
    for override in overrides:
        place = _set(values, override)
        lines = {key: line for key, line in lines.items() if key[: len(place)] != place}
        lines[place] = _OVERRIDE
    try:
        config = Config.model_validate(values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        problems = [_describe(problem, values, lines) for problem in error.errors()]
        raise ConfigError(f"{path}:\n" + "\n".join(f"  {line}" for line in problems)) from None
    for variable in config.key_variables:
        hide(variable)
    return config


def _read_yaml(path: Path) -> tuple[Values, Lines]:
    try:
        values, lines = parse_with_lines(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(missing(path)) from None
    except NotADirectoryError:
        raise ConfigError(f"{path}: {path.parent} is a file, not a directory") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: not a run file: {describe(path)}") from None
    except PermissionError:
        raise ConfigError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    except YamlError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping with the section `run`, ...")
    return values, lines


def _set(values: Values, override: str) -> KeyPath:
    """Apply an override, and return its place. A number in a key is that of a list's item, from 0.
    A section or list that the file leaves out starts from its default."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as train.beta=0.3")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"--set {override}: {text} is not valid YAML: {error}") from None
    node: Any = values
    place: list[str | int] = []
    *parents, last = key.split(".")
    for part in parents:
        step = _step(node, part, place, override)
        place.append(step)
        inner = node[step] if isinstance(step, int) else node.get(step)
        if inner is None:
            inner = node[step] = _default(place)
        node = inner
    step = _step(node, last, place, override)
    node[step] = value
    return (*place, step)


def _step(node: JsonValue, part: str, place: Sequence[str | int], override: str) -> str | int:
    """The key or item number with which `part` of an override leads into a section or list."""
    where = ".".join(map(str, place)) or "the run file"
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"--set {override}: {where} is {node!r}, not a section or list")
    if not part.isascii() or not part.isdigit() or int(part) >= len(node):
        items = f"items 0 to {len(node) - 1}" if node else "no items"
        raise ConfigError(f"--set {override}: {where} is a list with {items}, not {part!r}")
    return int(part)


def _default(place: Sequence[str | int]) -> JsonValue:
    """What a section or list that the run file leaves out contains; {} without a default."""
    *before, name = place
    defaults = [
        kind.model_fields[str(name)].get_default(call_default_factory=True)
        for kind in sections_at(Config, before)
        if name in kind.model_fields
    ]
    match defaults:
        case [BaseModel() as section]:
            return _written(section)
        case [tuple() as items] if items:
            return [_written(i) if isinstance(i, BaseModel) else i for i in items]
    return {}


def _written(section: BaseModel) -> JsonValue:
    """A section as a run file would have it: its tag, and what is not a default."""
    tag = {name: getattr(section, name) for name in ("type", "source") if hasattr(section, name)}
    return {**tag, **section.model_dump(mode="json", exclude_unset=True)}


def _describe(problem: ErrorDetails, values: Values, lines: Lines) -> str:
    """A problem with its line, its key and what was probably meant."""
    loc = problem["loc"]
    path = _without_tags(loc, values, problem["type"])
    text = problem["msg"].removeprefix("Value error, ")
    context = problem.get("ctx", {})
    if loc and loc[-1] == "[key]":  # of a mapping: its text is a value
        path = path[:-1] if path[-2] != loc[-2] else path[:-2]
    match problem["type"]:
        case "extra_forbidden":
            text = f"unknown key{key_hint(Config, loc, path)}"
        case "missing":
            text = "missing"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", str(context["expected"]))
            text += value_hint(problem["input"], allowed)
        case "union_tag_invalid":
            allowed = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            text += value_hint(context["tag"], allowed)
        case "union_tag_not_found":
            name = str(context["discriminator"]).strip("'")
            allowed = [tag for kind in sections_at(Config, loc) for tag in tags(kind)]
            text = f"needs the key `{name}`: {', '.join(allowed)}"
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = {None: "", _OVERRIDE: "--set: "}.get(line, f"line {line}: ")
    return f"{where}{'.'.join(map(str, path)) or 'the run file'}: {text}"


def _without_tags(loc: Sequence[str | int], values: Values, kind: str) -> KeyPath:
    """The path of keys and items in the file: an error's location without the tags of unions
    (`lora`, `vllm`), which pydantic inserts."""
    node: JsonValue = values
    path: list[str | int] = []
    for number, step in enumerate(loc):
        if isinstance(node, dict) and step in node:
            node = node[str(step)]
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
        elif number < len(loc) - 1 or kind == "value_error":  # of a section's own check
            continue
        path.append(step)
    return tuple(path)
