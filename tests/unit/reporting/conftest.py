"""Fixtures of the tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report_run import write_run_directory


@pytest.fixture
def evaluate(tmp_path: Path) -> Path:
    """The evaluate phase's directory of a run on 24 prompts."""
    write_run_directory(tmp_path / "run", 24)
    return tmp_path / "run" / "evaluate"
