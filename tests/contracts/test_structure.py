"""The structure of the package: names that are used once, and no circle of imports."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.conftest import ROOT


def test_a_public_class_name_is_used_once() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "dpo_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
