"""FSDP2 shards all weights, and trains as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from dpo_dist.training.checkpoints import last_complete
from dpo_dist.training.job import STOP, TrainingJob
from dpo_dist.training.launch_shape import LaunchShape
from tests.conftest import ROOT
from tests.in_process import in_this_process
from tests.integration.trainings import losses, metrics, train, write_training
from tests.numerics.test_against_trl import sft_adapter

LORA = "train.method={type: lora, r: 4, alpha: 8}"
FULL = "train.method={type: full}"
SAME = {"abs": 1e-5}


def environment() -> dict[str, str]:
    """What `accelerate launch` sets for fsdp2.yaml, without its precision."""
    config = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())
    keys = {key.upper(): str(value).lower() for key, value in config["fsdp_config"].items()}
    keys["FSDP_AUTO_WRAP_POLICY"] = keys["FSDP_AUTO_WRAP_POLICY"].upper()
    keys["FSDP_STATE_DICT_TYPE"] = keys["FSDP_STATE_DICT_TYPE"].upper()
    own = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    return {**os.environ, **keys, **own, "OMP_NUM_THREADS": "1"}


def train_sharded(processes: int, *jobs: TrainingJob) -> None:
    paths = []
    for job in jobs:
        job.out.mkdir(parents=True, exist_ok=True)
        shape = LaunchShape(processes=processes, fsdp=True)
        paths.append(job.out / "job.json")
        paths[-1].write_text(job.model_copy(update={"shape": shape}).model_dump_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", "-m", "tests.integration.fsdp_worker"),
        *map(str, paths),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]


def alone(run_file: Path, name: str, *overrides: str) -> TrainingJob:
    """Train in this process, and return the job."""
    with in_this_process():
        assert train(run_file, f"run.name={name}", *overrides) == 0
    path = run_file.parent / "runs" / name / "train" / "job.json"
    return TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))


def weights(folder: Path) -> dict:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_and_each_holds_half(
    tmp_path: Path, tiny_model: Path
) -> None:
    run_file = write_training(tmp_path, tiny_model)
    adapter = sft_adapter(tiny_model, tmp_path / "sft")
    full = alone(run_file, "full", FULL, "train.select=best")
    lora = alone(run_file, "lora", LORA, f"model.sft={adapter}")
    sharded = {
        name: job.model_copy(update={"out": tmp_path / name, "reference_folder": tmp_path / name})
        for name, job in {"full": full, "lora": lora, "stopped": full}.items()
    }
    sharded["stopped"].out.mkdir()
    (sharded["stopped"].out / STOP).touch()
    train_sharded(2, *sharded.values())

    for name, job in (("full", full), ("lora", lora)):
        out = sharded[name].out
        assert losses(out) == pytest.approx(losses(job.out), **SAME)
        for key in ("eval_rewards/margins", "grad_norm"):
            found, wanted = ([x[key] for x in metrics(o) if key in x] for o in (out, job.out))
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5), key
        outcome, own = (json.loads((o / "outcome.json").read_text()) for o in (out, job.out))
        assert outcome["selected_step"] == own["selected_step"]
        for key, weight in weights(job.model_dir).items():
            assert weights(out / "model")[key].sub(weight).abs().max() < 1e-4, key
        shares = [json.loads((out / f"share-{rank}.json").read_text()) for rank in range(2)]
        assert max(shares) < 0.55, "each rank holds its half of the weights"

    stopped = sharded["stopped"]
    checkpoint = last_complete(stopped.out / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 1
    (stopped.out / STOP).unlink()
    train_sharded(1, stopped.model_copy(update={"checkpoint": checkpoint.path}))
    assert losses(stopped.out) == pytest.approx(losses(full.out), **SAME)
