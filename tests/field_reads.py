"""Finds the keys of the run file that the package reads: attributes of expressions whose section is
known from annotations, assignments and loops. An expression of unknown type reads nothing. Reading
a property of a section also reads the keys that the property reads."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterable
from pathlib import Path

from dpo_dist.config import Config, Section

Kinds = frozenset[type[Section]]
NOTHING: Kinds = frozenset()
Known = dict[str, Kinds]
Read = tuple[type[Section], str]


def unread(package: Path) -> set[str]:
    """`Section.key` of every key that no code outside of the schema reads. A key with one possible
    value selects the section's class, and needs no reader."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
        if path.parent.name != "config"
    ]
    modules = [_Module(tree) for tree in trees]
    returned = {name: kinds for module in modules for name, kinds in module.returned().items()}
    attributes: Known = {}
    for module in modules:
        module.returned_anywhere, module.attributes = returned, attributes
        module.collect_attributes()
    found = _with_properties({read for module in modules for read in module.reads()})
    return {
        f"{section.__name__}.{key}"
        for section in sections()
        for key, field in section.model_fields.items()
        if len(typing.get_args(field.annotation)) != 1
        or typing.get_origin(field.annotation) is not typing.Literal
        if not any(key == name and _related(section, kind) for kind, name in found)
    }


def _with_properties(found: set[Read]) -> set[Read]:
    """Add the reads of the properties that are read."""
    every, new = sections(), found
    while new:
        new = {
            (section, key)
            for kind, name in new
            for section in every
            if _related(section, kind)
            for key in _own_reads(section, name)
        } - found
        found |= new
    return found


def _own_reads(section: type[Section], name: str) -> set[str]:
    """The attributes of `self` that a property reads; empty for a key."""
    value = inspect.getattr_static(section, name, None)
    if not isinstance(value, property) or value.fget is None:
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(value.fget)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _related(one: type[Section], other: type[Section]) -> bool:
    return issubclass(one, other) or issubclass(other, one)


def sections(kind: type[Section] = Config) -> set[type[Section]]:
    """Every section that a run file may contain, at any depth."""
    below = {found for f in kind.model_fields.values() for found in _sections_in(f.annotation)}
    return {kind}.union(*map(sections, below))


def _is_section(value: object) -> typing.TypeGuard[type[Section]]:
    return isinstance(value, type) and issubclass(value, Section)


def _sections_in(annotation: object) -> Kinds:
    """The sections anywhere in an annotation."""
    if _is_section(annotation):
        return frozenset({annotation})
    return NOTHING.union(*(_sections_in(part) for part in typing.get_args(annotation)))


def _under(kind: type[Section], name: str) -> Kinds:
    """The sections of a key, or the sections that a property or method returns."""
    if name in kind.model_fields:
        return _sections_in(kind.model_fields[name].annotation)
    value = getattr(kind, name, None)
    function = value.fget if isinstance(value, property) else value
    return (
        _sections_in(typing.get_type_hints(function).get("return"))
        if callable(function)
        else NOTHING
    )


def _imported(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name, None)


class _Module:
    """A file. Attributes of the package's classes are identified by name only."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._found: set[Read] = set()
        self.returned_anywhere: Known = {}
        self.attributes: Known = {}
        self._names: Known = {  # the sections that the file imports
            alias.asname or alias.name: _sections_in(_imported(node.module, alias.name))
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            and node.module is not None
            and node.module.startswith("dpo_dist.config")
            for alias in node.names
        }

    def returned(self) -> Known:
        """The functions that return sections, with these sections."""
        functions = (n for n in ast.walk(self._tree) if isinstance(n, ast.FunctionDef))
        return {f.name: kinds for f in functions if (kinds := self._annotated(f.returns))}

    def collect_attributes(self) -> None:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        self._attribute(field.target.id, self._annotated(field.annotation))
            elif isinstance(node, ast.FunctionDef):
                local = self._arguments(node)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Assign) and isinstance(
                        inner.targets[0], ast.Attribute
                    ):
                        self._attribute(inner.targets[0].attr, self._kinds(inner.value, local))

    def _attribute(self, name: str, kinds: Kinds) -> None:
        self.attributes[name] = self.attributes.get(name, NOTHING) | kinds

    def reads(self) -> set[Read]:
        self._walk(self._tree, {})
        return self._found

    def _walk(self, node: ast.AST, local: Known) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                local = {**local, **self._arguments(node)}
            case ast.Assign():
                self._bind(node.targets[0], node.value, local)
            case ast.AnnAssign(target=ast.Name(id=name)):
                local[name] = self._annotated(node.annotation)
            case ast.NamedExpr():
                self._bind(node.target, node.value, local)
            case ast.For():
                self._bind(node.target, node.iter, local)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                local = self._within(node.generators, local)
            case ast.Attribute():
                self._found |= {(kind, node.attr) for kind in self._kinds(node.value, local)}
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(str(key)), *_]):
                self._found |= {(kind, key) for kind in self._kinds(value, local)}
        for child in ast.iter_child_nodes(node):
            self._walk(child, local)

    def _kinds(self, node: ast.AST, local: Known) -> Kinds:
        """The sections that an expression may be or contain."""
        parts: Iterable[ast.AST] = ()
        match node:
            case ast.Name():
                return local.get(node.id, NOTHING)
            case ast.Attribute():
                if inner := self._kinds(node.value, local):
                    return NOTHING.union(*(_under(kind, node.attr) for kind in inner))
                return self.attributes.get(node.attr, NOTHING)
            case ast.Call(func=ast.Name(id=name)) if self._names.get(name):
                return self._names[name]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if (
                name in self.returned_anywhere
            ):
                return self.returned_anywhere[name]
            case ast.Call():
                parts = (*node.args, node.func)
            case ast.BoolOp() | ast.IfExp() | ast.Tuple() | ast.List() | ast.Starred():
                parts = ast.iter_child_nodes(node)
            case ast.Subscript() | ast.NamedExpr():
                parts = (node.value,)
            case ast.GeneratorExp() | ast.ListComp():
                local, parts = self._within(node.generators, local), (node.elt,)
        return NOTHING.union(*(self._kinds(part, local) for part in parts))

    def _within(self, generators: Iterable[ast.comprehension], local: Known) -> Known:
        inside = dict(local)
        for generator in generators:
            self._bind(generator.target, generator.iter, inside)
        return inside

    def _bind(self, target: ast.AST, value: ast.AST, local: Known) -> None:
        kinds = self._kinds(value, local)
        names = [target] if isinstance(target, ast.Name) else ast.walk(target)
        if not isinstance(target, ast.Attribute):
            local.update({node.id: kinds for node in names if isinstance(node, ast.Name)})

    def _arguments(self, function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Known:
        given = function.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        return {a.arg: self._annotated(a.annotation) for a in every if a.annotation}

    def _annotated(self, annotation: ast.AST | None) -> Kinds:
        words = ast.walk(annotation) if annotation is not None else ()
        names = (word.id for word in words if isinstance(word, ast.Name))
        return NOTHING.union(*(self._names.get(name, NOTHING) for name in names))
