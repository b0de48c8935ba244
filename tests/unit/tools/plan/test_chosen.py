"""The run file's own way to train, as `dpo-dist plan` understands it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dpo_dist.cli import main
from dpo_dist.config import Config, Train
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.estimates.fit import Workload, measure
from dpo_dist.estimates.hardware import find_cluster, preset_shape
from dpo_dist.estimates.scaling import Setting
from dpo_dist.runs.resources import strategy as strategy_of
from dpo_dist.runs.run import Run
from dpo_dist.tools.plan.chosen import chosen_way
from dpo_dist.tools.plan.data import Given, pairs_of
from dpo_dist.tools.plan.memory import workload
from dpo_dist.training import activations
from dpo_dist.training.job import MEMORY_SHARE
from dpo_dist.training.launch_shape import LaunchShape
from tests.conftest import ROOT

MISTRAL = preset_shape("Mistral-7B")
BOX = find_cluster("8xH100-80G")
RECIPE = ROOT / "recipes" / "ultrafeedback" / "full.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe(**train: object) -> Config:
    return load_config(RECIPE, [f"train.{key}={value}" for key, value in train.items()])


def work(config: Config) -> Workload:
    pairs = pairs_of(Run(config), Given())
    assert config.train is not None and pairs is not None
    return workload(config.train, MISTRAL, pairs)


def chosen(config: Config, cluster=BOX):
    assert config.train is not None
    return chosen_way(config.train, work(config), cluster, 0.35)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("ddp", "ddp"),
        ("zero1", "zero1"),
        ("zero2", "zero2"),
        ("zero3", "zero3"),
        ("multi_node_zero3", "zero3"),
        ("zero3_offload", "zero3_offload"),
        ("fsdp2", "fsdp2"),
    ],
)
def test_the_strategy_is_the_accelerate_configuration_s(name: str, strategy: str) -> None:
    assert (
        strategy_of(LaunchShape.read(Path(f"accelerate_configs/{name}.yaml")), BOX.size) == strategy
    )


def test_a_deepspeed_file_is_read_as_well(tmp_path: Path) -> None:
    cpu = {"device": "cpu"}
    zero = {"stage": 3, "offload_param": cpu, "offload_optimizer": cpu}
    deepspeed, path = tmp_path / "ds.json", tmp_path / "accelerate.yaml"
    settings = {"deepspeed_config_file": str(deepspeed)}
    path.write_text(yaml.safe_dump({"num_processes": 8, "deepspeed_config": settings}))
    deepspeed.write_text(json.dumps({"zero_optimization": zero}))
    assert strategy_of(LaunchShape.read(path), BOX.size) == "zero3_offload"
    # The weights stay on the GPU: their part is the larger one while training.
    deepspeed.write_text(json.dumps({"zero_optimization": zero | {"offload_param": None}}))
    assert strategy_of(LaunchShape.read(path), BOX.size) == "zero3"


def test_micro_batch_and_checkpointing_are_the_run_file_s() -> None:
    config = recipe(micro_batch_size=4, gradient_checkpointing="full")
    found = chosen(config)
    assert found.way == measure(work(config), BOX, Setting("zero3", 4, 4, "full"), 0.35)
    assert found.problem == found.note == ""


def test_auto_checkpoints_when_the_trainer_would() -> None:
    assert activations.MEMORY_SHARE == MEMORY_SHARE
    little, much = chosen(recipe(micro_batch_size=1)), chosen(recipe(micro_batch_size=2))
    assert little.way is not None and much.way is not None
    assert little.way.gradient_checkpointing == "none"
    assert little.way.total <= MEMORY_SHARE * BOX.gpu.memory
    # Two pairs at a time would fill more than that without; selective is not for ZeRO-3.
    assert much.way.gradient_checkpointing == "full"
    as_set = chosen(recipe(micro_batch_size=2, gradient_checkpointing="none"))
    assert as_set.way is not None and as_set.way.total > MEMORY_SHARE * BOX.gpu.memory


def test_what_does_not_fit_is_a_problem() -> None:
    found = chosen(recipe(accelerate_config="accelerate_configs/ddp.yaml"))
    assert found.way is not None and not found.way.fits
    assert "accelerate_configs/ddp.yaml, micro_batch_size 2" in found.problem
    assert "(largest part: optimizer), and 69.7 GiB are usable" in found.problem


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"micro_batch_size": 32}, "128 is not a multiple of micro_batch_size 32 x 8 processes"),
        ({"gradient_checkpointing": "selective"}, "selective is not possible under ZeRO-3"),
        ({"accelerate_config": "accelerate_configs/single_gpu.yaml"}, "is for one process"),
    ],
)
def test_what_cannot_be_started_is_a_problem(settings: dict, problem: str) -> None:
    found = chosen(recipe(**settings))
    assert found.way is None and problem in found.problem


def test_a_configuration_for_processors_asks_for_no_way() -> None:
    found = chosen(recipe(accelerate_config="accelerate_configs/cpu.yaml"))
    assert found.way is None and not found.problem
    assert "cpu.yaml is for CPUs" in found.note


def test_other_numbers_of_processes_are_left_to_launch() -> None:
    found = chosen(recipe(), find_cluster("8xH100-80G", nodes=2))
    assert found.way is not None and not found.problem
    assert "is for 1 x 8 processes, this plan for 2 x 8" in found.note
    assert "`dpo-dist launch` adapts a copy" in found.note
    one = chosen(
        recipe(accelerate_config="accelerate_configs/single_gpu.yaml"), find_cluster("H200-141G")
    )
    assert one.way is not None and one.way.strategy == "single_gpu" and not one.note


def test_an_accelerate_configuration_that_is_missing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        chosen(recipe(accelerate_config="nowhere.yaml"))


def test_without_an_accelerate_configuration_there_is_nothing_to_judge() -> None:
    config = recipe()
    assert config.train is not None
    settings = config.train.model_dump(exclude={"accelerate_config"})
    undecided = config.model_copy(update={"train": Train.model_validate(settings)})
    found = chosen(undecided)
    assert found.way is None and not found.problem
    assert "names no accelerate configuration" in found.note


def test_a_name_is_planned_for_all_gpus() -> None:
    found = chosen(recipe(accelerate_config="zero3"), find_cluster("4xH100-80G"))
    assert found.accelerate_config == "zero3" and not found.note
    assert found.way is not None and found.way.strategy == "zero3"


def plan(capsys, tmp_path: Path, *words: str) -> tuple[int, str, str, dict]:
    target = tmp_path / "plan.json"
    code = main(["plan", str(RECIPE), "--gpus", "8xH100-80G", "--json", str(target), *words])
    out, err = capsys.readouterr()
    return code, out, err, json.loads(target.read_text())


def test_a_run_file_that_does_not_fit_ends_with_2(capsys, tmp_path: Path) -> None:
    override = "train.accelerate_config=accelerate_configs/ddp.yaml"
    code, out, err, figures = plan(capsys, tmp_path, "--set", override)
    assert code == 2
    assert "train does not fit with the run file's settings (accelerate_configs/ddp.yaml" in err
    assert "this fits: --set train.accelerate_config=zero" in err
    row = next(line for line in out.splitlines() if line.startswith(" the run file's "))
    assert " no " in row
    assert "does not fit, 167.7 GiB" in " ".join(out.split())
    # There is no time for what does not run: the hours are those of the recommendation.
    assert figures["run_file"]["train_hours"] is None
    assert figures["phases"][0]["hours"] == figures["recommendation"]["train_hours"]


def test_hours_are_those_of_the_run_file_s_own_way(capsys, tmp_path: Path) -> None:
    words = ("--set", "train.gradient_checkpointing=full", "--set", "train.micro_batch_size=1")
    code, out, _, figures = plan(capsys, tmp_path, *words)
    assert code == 0
    own, advice = figures["run_file"], figures["recommendation"]
    assert own["way"]["strategy"] == "zero3" and own["way"]["fits"]
    assert figures["phases"][0]["hours"] == own["train_hours"] > advice["train_hours"]
    assert f"steps of {own['way']['step_seconds']:.2f} s" in figures["phases"][0]["note"]
    assert f"{own['way']['step_seconds']:.2f} s per step" in out
    assert f"{advice['step_seconds']:.2f} s per step" in out
    assert "in that file" not in out  # shipped files need no editing
