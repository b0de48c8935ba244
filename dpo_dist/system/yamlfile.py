"""Reads YAML: refuses keys that stand twice, and knows the line of every key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

KeyPath: TypeAlias = tuple[str | int, ...]
Lines: TypeAlias = Mapping[KeyPath, int]  # the line of a key or item, counted from 1


class YamlError(ValueError):
    """The text is not valid YAML; the message names the line."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but a number such as 5e-6 is one, as in YAML 1.2; there, it is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    [*"-+0123456789"],
)


def parse_yaml(text: str) -> Any:
    """The values of a document; None if it is empty. Raises `YamlError`."""
    return parse_with_lines(text)[0]


def parse_with_lines(text: str) -> tuple[Any, Lines]:
    """The values of a document, and the lines of its keys and items. Raises `YamlError`."""
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, lines
            _find_lines(node, (), lines, set())
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" ({error.context})" if error.context else ""
        raise YamlError(f"{where}{error.problem}{context}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        raise YamlError(" ".join(str(error).split())) from None


def _find_lines(node: Node, path: KeyPath, lines: dict[KeyPath, int], seen: set[int]) -> None:
    """Add the lines of the keys and items below a node. Raises `YamlError` for a key that stands
    twice in a mapping: the last value would replace the first without a word."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    match node:
        case MappingNode(value=pairs):
            first: dict[str, int] = {}
            for key, value in pairs:
                if not isinstance(key, ScalarNode):
                    continue
                inner, line = (*path, key.value), key.start_mark.line + 1
                if key.value in first:
                    name = ".".join(map(str, inner))
                    raise YamlError(
                        f"`{name}` stands twice, in line {first[key.value]} and in line {line}: "
                        "remove one of them"
                    )
                first[key.value] = lines[inner] = line
                _find_lines(value, inner, lines, seen)
        case SequenceNode(value=items):
            for number, item in enumerate(items):
                lines[*path, number] = item.start_mark.line + 1
                _find_lines(item, (*path, number), lines, seen)
