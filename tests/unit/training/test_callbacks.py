"""When a training saves and stops, and what it waits for."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState

from dpo_dist.config import Train
from dpo_dist.training.callbacks import BEST_BY, CheckpointKeeper, best_checkpoint
from dpo_dist.training.checkpoints import Checkpoint, damage, last_complete, seal, written_files
from dpo_dist.training.launch_shape import NOT_SHARDED
from tests.training_jobs import training_job


class Training:
    """What transformers' trainer does with the callback, without a model."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.out = folder
        self.signalled = Event()
        job = training_job(folder, settings=Train(keep_checkpoints=1, **settings))
        self.keeper = CheckpointKeeper(job, self.signalled)
        self.args = SimpleNamespace(
            output_dir=str(folder / "checkpoints"), device="cpu", metric_for_best_model=BEST_BY
        )
        self.state = TrainerState(max_steps=12)
        self.control = TrainerControl()
        self.saved: list[int] = []
        self.keeper.on_train_begin(self.args, self.state, self.control)

    def step(self, accuracy: float | None = None) -> None:
        state, control = self.state, self.control
        state.global_step += 1
        # As transformers' own callback does at its `save_steps`, and after the last step.
        control.should_save = state.global_step in (1, state.max_steps)
        control.should_training_stop = state.global_step == state.max_steps
        self.keeper.on_step_end(self.args, state, control)
        if accuracy is not None:
            self.keeper.on_evaluate(self.args, state, control, metrics={BEST_BY: accuracy})
            if state.best_metric is None or accuracy > state.best_metric:
                state.best_metric, state.best_global_step = accuracy, state.global_step
        if control.should_save:
            path = self.out / "checkpoints" / f"checkpoint-{state.global_step}"
            path.mkdir(parents=True)
            (path / "adapter.safetensors").write_bytes(b"weights" * 1000)
            self.keeper.on_save(self.args, state, control)
            self.saved.append(state.global_step)

    def end(self) -> list[int]:
        """End training; the steps whose checkpoints are left."""
        self.keeper.on_train_end(self.args, self.state, self.control)
        found = (self.out / "checkpoints").glob("*")
        assert all(damage(path) is None for path in found)
        left = (self.out / "checkpoints").glob("*")
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in left)


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"save_steps": 5}, [5, 10]),
        ({"save_steps": 4}, [4, 8]),  # not 12, where the model is saved
        ({"save_minutes": 1e-9}, list(range(1, 12))),
        ({"save_steps": 100, "save_minutes": None}, []),
    ],
)
def test_the_keys_decide_when_to_save(
    tmp_path: Path, settings: dict[str, object], saved: list[int]
) -> None:
    training = Training(tmp_path, **settings)
    for _ in range(12):
        training.step()
    assert training.saved == saved and not training.keeper.stopped
    assert training.end() == saved[-1:]


def test_a_new_best_step_is_saved_and_kept(tmp_path: Path) -> None:
    training = Training(tmp_path, save_steps=5)
    for step in range(1, 13):
        training.step({3: 0.6, 6: 0.9, 9: 0.8, 12: 0.95}.get(step))
    assert training.saved == [3, 6, 11], "five steps after the last one; not the last step"
    training.state.best_global_step = 6
    assert training.end() == [6, 11]


def test_a_stop_is_saved_and_sealed_before_training_ends(tmp_path: Path) -> None:
    training = Training(tmp_path, save_steps=100)
    training.step()
    assert not training.control.should_training_stop
    training.signalled.set()
    training.step()
    assert training.control.should_training_stop and training.keeper.stopped
    assert training.end() == [2]
    newest = tmp_path / "checkpoints" / "checkpoint-2"
    assert last_complete(tmp_path / "checkpoints") == Checkpoint(newest, 2, 1)


def test_after_the_last_step_there_is_nothing_to_stop(tmp_path: Path) -> None:
    training = Training(tmp_path, save_steps=100)
    training.state.global_step = 11
    training.signalled.set()
    training.step()
    assert training.saved == [] and not training.keeper.stopped


def checkpoint(folder: Path, *, fsdp: bool) -> Path:
    """A sealed checkpoint with weights as transformers writes them, or FSDP's shards."""
    path = folder / "checkpoint-4"
    path.mkdir()
    weights = {"w": torch.ones(40, 40)}
    if fsdp:
        dcp.save({"model": weights}, checkpoint_id=path / "pytorch_model_fsdp_0", no_dist=True)
        dcp.save({"optimizer": weights}, checkpoint_id=path / "optimizer_0", no_dist=True)
    else:
        save_file(weights, path / "model.safetensors")
        torch.save(weights, path / "optimizer.pt")
    seal(Checkpoint(path, 4, 2, "FSDP" if fsdp else NOT_SHARDED), written_files(path))
    return path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_the_best_step_needs_undamaged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fsdp: bool, part: str
) -> None:
    """Its optimizer's state does not matter any more."""
    best = checkpoint(tmp_path, fsdp=fsdp)
    state = SimpleNamespace(global_step=9, best_global_step=4, best_model_checkpoint=str(best))
    assert best_checkpoint(state) == best
    files = [path for path in best.rglob("*") if path.is_file() and path.name != "COMPLETE"]
    for file in (path for path in files if part in path.relative_to(best).as_posix()):
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        damaged = part == "model"
        assert best_checkpoint(state) == (None if damaged else best)
        assert ("has changed. Using the last one" in capsys.readouterr().err) == damaged
        assert damage(best) is not None
        file.write_bytes(whole)
    assert damage(best) is None and len(files) == (4 if fsdp else 2)


@pytest.mark.parametrize("best", [9, None])
def test_the_last_step_needs_no_checkpoint(best: int | None) -> None:
    state = SimpleNamespace(global_step=9, best_global_step=best, best_model_checkpoint=None)
    assert best_checkpoint(state) is None
