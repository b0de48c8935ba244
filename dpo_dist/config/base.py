"""Base classes of the sections of run.yaml, and markers for their fields.

The docstring below a field describes its key; docs/reference.md is generated from these docstrings.
A field that overrides another one inherits its docstring.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dpo_dist.system.functions import FUNCTION_PATH


@dataclass(frozen=True)
class Runtime:
    """Marks a key that affects how the work is done, but not its result. It may change between an
    interrupted phase and the command that resumes it."""


RUNTIME = Runtime()


def _anchored(path: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get("folder")
    return path if folder is None else folder / path


def _names_a_function(path: Path) -> Path:
    if not re.fullmatch(FUNCTION_PATH, path.name):
        raise ValueError(f"{path.name!r} is not of the form module:function or file.py:function")
    return path


# A path relative to the run file, so that a recipe can be moved. Keys of the plain type `Path` are
# relative to the working directory.
RecipePath: TypeAlias = Annotated[Path, AfterValidator(_anchored)]
# file.py:function or module:function, in the run file's folder or in the working directory.
FunctionPath: TypeAlias = Annotated[RecipePath, AfterValidator(_names_a_function)]

# Keys that select one section among several, with their descriptions.
TAGS = {"type": "Selects this type.", "source": "Selects this source."}


class Section(BaseModel):
    """A part of the run file: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def fixed(self) -> dict[str, JsonValue]:
        """The section as JSON values, without the keys marked `Runtime`."""
        return {
            name: _fixed(getattr(self, name), value)
            for name, value in self.model_dump(mode="json").items()
            if RUNTIME not in type(self).model_fields[name].metadata
        }

    @classmethod
    def describe(cls, key: str) -> str:
        """The docstring of the key's field, or of the field that it overrides."""
        if key in TAGS:
            return TAGS[key]
        fields = (kind.model_fields.get(key) for kind in cls.__mro__ if issubclass(kind, Section))
        return next(found.description for found in fields if found and found.description)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe every key, also one that overrides another."""
        reference = handler(core_schema)
        found = handler.resolve_ref_schema(reference)
        for key, described in found["properties"].items():
            described["description"] = " ".join(cls.describe(key).split())
        found["description"] = " ".join((cls.__doc__ or "").split())
        return reference


def _fixed(field: object, value: JsonValue) -> JsonValue:
    """The JSON `value` of a field; sections in it are reduced to their fixed keys."""
    if isinstance(field, Section):
        return field.fixed()
    if isinstance(field, tuple) and isinstance(value, list):
        return [_fixed(item, json) for item, json in zip(field, value, strict=True)]
    return value


S = TypeVar("S", bound=Section)


def required(section: S | None) -> S:
    """The section of a phase that only runs if its section is present."""
    assert section is not None
    return section


class Resource(Section):
    """A section that describes an engine, judge, metric or service, and what it needs besides the
    run file.

    `noun`: its name in messages. `paid`: its requests cost money. `needs_gpu`: it runs on this
    machine's GPUs, if there are any. `key_variables`: the environment variables that hold its API
    keys, and whether each key is required. `files`: the files that its results depend on, by name.
    `model_path`: the model that its results depend on.
    """

    needs_gpu: ClassVar[bool] = False

    @property
    def noun(self) -> str:
        return f"`{type(self).__name__}`"

    @property
    def paid(self) -> bool:
        return False

    @property
    def key_variables(self) -> Mapping[str, bool]:
        return {}

    @property
    def files(self) -> Mapping[str, Path]:
        return {}

    @property
    def model_path(self) -> str | None:
        return None


class ChatTemplate(Section):
    """Changes to a tokenizer's chat template."""

    path: Path | None = None
    """A jinja file that replaces the template; null: the tokenizer's own."""
    variables: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the template."""
