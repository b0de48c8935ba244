"""`select: best` copies the weights of a checkpoint, whoever sharded it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_dist.training.best import put_best
from dpo_dist.training.checkpoints import Checkpoint, seal, written_files

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

Weights = dict[str, torch.Tensor]


def weights(seed: int, names: tuple[str, ...], dtype: torch.dtype) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, 3, generator=generator).to(dtype) for name in names}


FULL = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
ADAPTER = tuple(f"base_model.model.layers.0.q_proj.lora_{side}.weight" for side in "AB")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def checkpoint_of(folder: Path, state: dict[str, object]) -> Path:
    path = folder / "checkpoints" / "checkpoint-4"
    dcp.save(state, checkpoint_id=path / "pytorch_model_fsdp_0", no_dist=True)
    dcp.save({"optimizer": {"x": torch.ones(3)}}, checkpoint_id=path / "optimizer_0", no_dist=True)
    seal(Checkpoint(path, 4, 2, "FSDP"), written_files(path))
    return path


def trained(best: Path) -> SimpleNamespace:
    return SimpleNamespace(global_step=9, best_global_step=4, best_model_checkpoint=str(best))


@pytest.mark.parametrize("names", [FULL, ADAPTER])
def test_fsdp_s_shards_refill_the_saved_files(
    tmp_path: Path, model: Path, names: tuple[str, ...]
) -> None:
    """The model's files are bfloat16 and split in two; the shards have float32, and the adapter's
    name."""
    best = weights(1, names, torch.float32)
    sharded = {
        name.replace(".weight", ".default.weight") if "lora" in name else name: value
        for name, value in best.items()
    }
    checkpoint = checkpoint_of(tmp_path, {"model": sharded})
    last = weights(2, names, torch.bfloat16)
    files = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for file, some in files.items():
        save_file({name: last[name] for name in some}, model / file, {"format": "pt"})
    assert put_best(model, trained(checkpoint)) == 4
    for file, some in files.items():
        loaded = load_file(model / file)
        assert loaded.keys() == set(some)
        for name, value in loaded.items():
            assert torch.equal(value, best[name].to(torch.bfloat16))
        with safe_open(model / file, "pt") as content:
            assert content.metadata() == {"format": "pt"}


def test_plain_files_are_copied(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    best = weights(1, FULL, torch.float32)
    save_file(best, path / "model.safetensors")
    (path / "optimizer.pt").write_bytes(b"moments")
    seal(Checkpoint(path, 4, 1), written_files(path))
    save_file(weights(2, FULL, torch.float32), model / "model-1-of-2.safetensors")
    # Other files of the checkpoint do not matter any more.
    (path / "optimizer.pt").write_bytes(b"damaged")
    assert put_best(model, trained(path)) == 4
    assert [file.name for file in model.iterdir()] == ["model.safetensors"]
    loaded = load_file(model / "model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in best.items())


@pytest.mark.parametrize("folder", ["pytorch_model_fsdp_0", "optimizer_0"])
def test_damaged_shards_are_not_selected(
    tmp_path: Path, model: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoint_of(tmp_path, {"model": weights(1, FULL, torch.float32)})
    save_file(weights(2, FULL, torch.float32), model / "model.safetensors")
    shard = next((checkpoint / folder).glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    weights_damaged = folder == "pytorch_model_fsdp_0"
    assert put_best(model, trained(checkpoint)) == (9 if weights_damaged else 4)
    assert ("has changed" in capsys.readouterr().err) == weights_damaged


@pytest.mark.parametrize("best", [9, None])
def test_the_last_step_needs_no_checkpoint(model: Path, best: int | None) -> None:
    state = SimpleNamespace(global_step=9, best_global_step=best, best_model_checkpoint=None)
    assert put_best(model, state) == 9
