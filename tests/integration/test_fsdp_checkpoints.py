"""Shards of real FSDP2 ranks: sealed, verified, and read by a single process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from dpo_dist.training.best import FSDP_WEIGHTS, put_best
from dpo_dist.training.checkpoints import Checkpoint, last_complete, written_files
from dpo_dist.training.sealing import BackgroundSeal

WORLD = 2


def network() -> torch.nn.Module:
    """Its sizes are no multiples of the number of ranks."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))


def save_shards(rank: int, folder: Path) -> None:
    """One step of a sharded training, then what accelerate saves."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=WORLD)
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    checkpoint = folder / "checkpoints" / "checkpoint-4"
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=checkpoint / FSDP_WEIGHTS)
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": state}, checkpoint_id=checkpoint / "optimizer_0")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shards_are_sealed_and_become_the_best_model(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(save_shards, (tmp_path,), nprocs=WORLD)
    path = tmp_path / "checkpoints" / "checkpoint-4"
    written = written_files(path)
    shards = {f"__{rank}_0.distcp" for rank in range(WORLD)}
    assert written.keys() == {
        f"{part}/{file}"
        for part in (FSDP_WEIGHTS, "optimizer_0")
        for file in (".metadata", *shards)
    }
    seal, checkpoint = BackgroundSeal(keep=1), Checkpoint(path, 4, WORLD, "FSDP")
    seal.start(checkpoint, written, None)
    seal.wait()
    assert last_complete(tmp_path / "checkpoints") == checkpoint

    model = tmp_path / "model"
    model.mkdir()
    save_file(network().state_dict(), model / "model.safetensors")
    state = SimpleNamespace(global_step=9, best_global_step=4, best_model_checkpoint=str(path))
    assert put_best(model, state) == 4
    trained = network()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    trained(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    loaded = load_file(model / "model.safetensors")
    for name, value in trained.state_dict().items():
        assert torch.allclose(loaded[name], value, atol=1e-6), name
