"""YAML of what was built as dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    """No anchors, and texts of several lines as blocks: the files are read by people, too."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """One document, or several with `---` between them, with their keys in the order given."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100)
