"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import yaml

from tests.tiny import make_model

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
REAL_PREFERENCES = ROOT.parent / "shared" / "data" / "preferences_real.jsonl"
REAL_VERDICTS = REAL_PREFERENCES.with_name("verdicts_real.jsonl")


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no proxy, no key and no launcher of the machine that they run on."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("ANTHROPIC_API_KEY", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def write_jsonl():
    def write(path: Path, rows: list[dict]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_run(tmp_path: Path):
    """Write a run file from its sections and return its path."""

    def write(**sections: object) -> Path:
        sections.setdefault("run", {"name": "test", "output_dir": str(tmp_path / "runs")})
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_cuda = importlib.util.find_spec("torch") is not None and _cuda_available()
    for item in items:
        if "gpu" in item.keywords and not has_cuda:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()
