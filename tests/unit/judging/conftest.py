"""A Claude API on the loopback, and a rubric."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.anthropic_server import Server, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    return tmp_path / "rubric.md"
