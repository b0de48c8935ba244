"""Writes docs/reference.md from the descriptions of the run file's keys: `make reference`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dpo_dist.config import Config
from dpo_dist.config.base import RUNTIME, TAGS, Section, _anchored

TARGET = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Reference of the run file

Generated from `dpo_dist/config/` by `make reference`. A key without a default is required if its
section is present.

- *resume*: the key may change between an interrupted phase and the command that resumes it. If any
  other key has changed, the command shows the difference and stops.
- *path*: relative to the run file. Other paths are relative to the working directory.

`--set train.beta=0.3` overrides a key on the command line.
"""
_PLAIN: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true`, `false`",
    Path: "file",
}
_MOST_KINDS = 6  # that one cell of a table lists
Places = dict[type[Section], list[str]]


def reference() -> str:
    """The text of docs/reference.md."""
    places: Places = {}
    _collect(Config, "", places)
    parts = [INTRODUCTION]
    for section, names in places.items():
        parts.append(f"\n## {_title(section, names)}\n\n{_summary(section)}\n")
        if len(names) > 1:
            parts.append(f"\nAlso: {', '.join(f'`{name}`' for name in names[1:])}.\n")
        parts.append("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        keys = sorted(section.model_fields, key=lambda key: key not in TAGS)  # the tag comes first
        parts += [_row(section, key, places) for key in keys]
    return "".join(parts)


def _collect(section: type[Section], path: str, places: Places) -> None:
    """Every section under this one, and the dotted places where it can occur."""
    for key, field in section.model_fields.items():
        place = f"{path}.{key}" if path else key
        for inner in _sections(field.annotation):
            known = inner in places
            places.setdefault(inner, []).append(place)
            if not known:
                _collect(inner, place, places)


def _sections(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _tag(section: type[Section]) -> str | None:
    """The key and value that select the section, such as `type: vllm`."""
    for key in TAGS:
        field = section.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return f"{key}: {get_args(field.annotation)[0]}"
    return None


def _title(section: type[Section], names: list[str]) -> str:
    tag = _tag(section)
    return f"`{names[0]}`" + (f", `{tag}`" if tag else "")


def _summary(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _row(section: type[Section], key: str, places: Places) -> str:
    field = section.model_fields[key]
    default = "" if field.is_required() else _default(field)
    meaning = " ".join(section.describe(key).split())
    if RUNTIME in field.metadata:
        meaning += " *resume*"
    cells = (f"`{key}`", _type(_declared(field), places), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _declared(field: FieldInfo) -> object:
    """The annotation with the metadata that pydantic keeps apart."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(str(_plain(item)) for item in value)}]`"
    return f"`{_plain(value)}`"


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True, mode="json")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value


def _type(annotation: object, places: Places) -> str:
    """The type in words; sections are linked."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if any(getattr(found, "func", None) is _anchored for found in parts[1:]):
            return "path"
        bounds = [word for found in parts[1:] for word in _bounds(found)]
        return " ".join([_type(parts[0], places), *bounds])
    if origin in (Union, types.UnionType):
        kinds = [_type(part, places) for part in parts if part is not type(None)]
        if len(kinds) > _MOST_KINDS:
            return f"one of {len(kinds)} types, starting with {kinds[0]}"
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in parts)
    if origin is tuple:
        return f"list of {_type(parts[0], places)}"
    if origin is dict:
        return f"map of {_type(parts[0], places)} to {_type(parts[1], places)}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        title = _title(annotation, places[annotation])
        anchor = "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")
        tag = _tag(annotation)
        return f"[{tag.partition(' ')[2] if tag else 'section'}](#{anchor})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _PLAIN.get(annotation, str(annotation))


def _bounds(metadata: object) -> Iterator[str]:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if (bound := getattr(metadata, name, None)) is not None:
            yield f"{sign} {bound:g}"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
