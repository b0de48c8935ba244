"""Fixtures of several test files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from dpo_dist.system.machine import has_cuda
from tests.shared import shared_folder
from tests.tiny import make_model

# One thread per process, before torch is imported: there are about as many test processes as cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# huggingface_hub reads it when it is imported. Without it, tests wait for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
REAL_PREFERENCES = ROOT.parent / "shared" / "data" / "preferences_real.jsonl"
REAL_VERDICTS = REAL_PREFERENCES.with_name("verdicts_real.jsonl")
# Modules that take a minute and more, the longest first.
LONGEST = ("test_slurm", "test_checkpoints", "test_training", "test_nodes", "test_engines")
VLLM = ("test_engines", "test_engines_in_turn", "test_seeds")  # one process imports vLLM


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide proxies, keys and launcher variables of this machine from the tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("ANTHROPIC_API_KEY", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory, "tiny", make_model)


@pytest.fixture
def write_jsonl():
    def write(path: Path, rows: list[dict]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module next to the run file, outside of Python's path; return its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code: str) -> str:
        name = f"module_of_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return name

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not _cuda_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, bool]:
    """Workers begin with the longest modules: what is left for the end is short."""
    module = Path(item.nodeid.partition("::")[0]).stem
    place = LONGEST.index(module) if module in LONGEST else len(LONGEST)
    return place, "slow" not in item.keywords


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A module is one worker's, with its fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "vLLM" if Path(module).stem in VLLM else module

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def _cuda_available() -> bool:
    if not has_cuda():
        return False
    import torch

    return torch.cuda.is_available()
