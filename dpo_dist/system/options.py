"""Command-line options: those declared in the fields of a dataclass, and `--set` of a command."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)


@dataclass(frozen=True)
class Option:
    """The option of a field with the type `Annotated[type, Option(...)]`: its help, the placeholder
    of its value, its name if it differs from the field's, and a parser if the type cannot parse the
    text. The type may be str, int, float, Path, bool (a flag), a `Literal` (choices), a tuple
    (repeatable), or one of these or None."""

    help: str
    metavar: str | None = None
    name: str | None = None
    parse: Callable[[str], object] | None = None


def add_options(
    parser: argparse._ActionsContainer,
    kind: type[DataclassInstance],
    only: Collection[str] | None = None,
    *,
    optional: bool = False,
    **defaults: object,
) -> None:
    """Add the options of all fields, or of the fields in `only`. The option of a field without a
    default is required unless `optional` is set. `defaults` replaces defaults, by field."""
    for field, declared, option in _declared(kind):
        if only is not None and field.name not in only:
            continue
        default = defaults.get(field.name, field.default)
        value = None if default is MISSING else default
        flag, text = _flag(field.name, option), option.help.replace("%", "%%")
        if declared is bool:
            assert not value, f"{flag}: a flag is off by default"
            parser.add_argument(flag, dest=field.name, action="store_true", help=text)
            continue
        choices = get_args(declared) if get_origin(declared) is Literal else None
        repeatable = get_origin(declared) is tuple
        if repeatable:
            assert not value, f"{flag}: a repeatable option is empty by default"
            (declared, *_), value, text = get_args(declared), [], f"{text} (repeatable)"
        elif choices is None and value not in (None, "") and "default" not in text:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            text += f" (default: {shown.replace('%', '%%')})"
        assert choices or isinstance(declared, type), f"{flag}: an option cannot hold a {declared}"
        parser.add_argument(
            flag,
            dest=field.name,
            action="append" if repeatable else "store",
            type=option.parse or (declared if isinstance(declared, type) else str),
            choices=choices,
            default=value,
            required=default is MISSING and not optional,
            metavar=option.metavar,
            help=text,
        )


def flags(kind: type[DataclassInstance]) -> dict[str, str]:
    """The flags of the options, such as `--main-port`, by field."""
    return {field.name: _flag(field.name, option) for field, _, option in _declared(kind)}


def _flag(field: str, option: Option) -> str:
    return f"--{option.name or field.replace('_', '-')}"


def from_options(kind: type[D], options: argparse.Namespace, **values: object) -> D:
    """Build the dataclass from the values of its options, and `values` for its other fields. Raises
    the errors of its constructor."""
    for field in fields(kind):
        if field.name in values or not hasattr(options, field.name):
            continue
        value = getattr(options, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def set_options(overrides: Iterable[str]) -> list[str]:
    """The overrides of a run file as options of a command line: `--set KEY=VALUE` for each."""
    return [word for override in overrides for word in ("--set", override)]


def _declared(kind: type[DataclassInstance]) -> Iterator[tuple[Field[Any], object, Option]]:
    """The fields that declare an option, with their types (`X` for `X | None`) and options."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        for option in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(option, Option):
                yield field, _without_none(get_args(hints[field.name])[0]), option


def _without_none(declared: object) -> object:
    """`X` of `X | None`."""
    if get_origin(declared) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(declared) if part is not type(None))
        return kind
    return declared
