"""Arms that are whole checkpoints: one vLLM engine after the other, in one process."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from pathlib import Path

import pytest

from dpo_dist.config import Sampling, VllmEngine
from dpo_dist.generation import vllm_engine
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Request
from tests.conftest import SMOLLM2
from tests.contracts.test_engines import ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"{SMOLLM2} is not there: make model"),
]


def another_checkpoint(folder: Path) -> Path:
    """SmolLM2 with its last layer's feed-forward weights halved."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(SMOLLM2, folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.layers.29.mlp.down_proj.weight"] *= 0.5
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def answers(model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """Greedy answers of an engine that is built, asked and closed."""
    asked = {
        str(n): Request(str(n), ids(model, f"Name colour {n}."), Sampling(temperature=0), 16)
        for n in range(4)
    }
    read: dict[str, tuple[int, ...]] = {}
    complete = vllm_engine._completion

    def noting(output):
        read[output.request_id] = tuple(output.prompt_token_ids)
        return complete(output)

    monkeypatch.setattr(vllm_engine, "_completion", noting)
    config = VllmEngine(type="vllm", max_model_len=128, max_num_seqs=8, kv_cache_gib=1)
    engine = build_engine(config, str(model), dtype="float32", seed=0)
    found = {answer.id: answer.token_ids for answer in engine.generate(asked.values())}
    engine.close()
    assert read == {name: request.prompt_ids for name, request in asked.items()}, (
        "the engine read what it was sent, with no second BOS"
    )
    return found


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_every_engine_answers_with_its_own_weights_and_gives_its_memory_back(
    tmp_path: Path, monkeypatch
) -> None:
    other = another_checkpoint(tmp_path / "SmolLM2-other")
    first = answers(SMOLLM2, monkeypatch)
    after_one = resident_mb()
    second = answers(other, monkeypatch)
    third = answers(SMOLLM2, monkeypatch)
    assert second != first == third
    gc.collect()
    # Two engines that were kept would hold 1.1 GB of weights, and their caches.
    assert resident_mb() < after_one + 800
