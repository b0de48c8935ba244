"""Which jobs a run has, and what each of them needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.errors import ConfigError, NotConfirmed
from tests.unit.tools.launch.runs import RECIPE, ZERO2, layout

SERVERS = "sample.engine={type: vllm_server, urls: ['http://gpu-1:8000']}"
REWARD_MODEL = "{type: reward_model, model: org/reward}"
CLAUDE = "{type: claude, model: claude-opus-4-7, rubric: rubric.md}"


def shapes(*overrides: str, **machines: object) -> dict[str, tuple[int, int, int]]:
    return {
        stage.name: (stage.nodes, stage.gpus, stage.shards)
        for stage in layout(*overrides, **machines).stages()
    }


def test_training_takes_all_machines_and_generation_a_job_for_each_gpu() -> None:
    assert shapes(nodes=2, gpus_per_node=8) == {
        "sft": (2, 8, 0),
        "sample": (1, 1, 16),
        "judge": (1, 0, 0),
        "train": (2, 8, 0),
        "evaluate": (1, 1, 16),
        "score": (1, 0, 0),
        "report": (1, 0, 0),
    }


def test_an_engine_of_four_gpus_makes_a_quarter_of_the_jobs() -> None:
    found = shapes("sample.engine.tensor_parallel_size=4", nodes=2, gpus_per_node=8)
    assert found["sample"] == found["evaluate"] == (1, 4, 4)
    with pytest.raises(ConfigError, match="tensor_parallel_size is 4, but a node has 2 GPUs"):
        shapes("sample.engine.tensor_parallel_size=4", nodes=2, gpus_per_node=2)


def test_a_job_without_gpus_judges_what_it_has_generated_and_one_with_gpus_does_not() -> None:
    found = shapes(nodes=1, gpus_per_node=0)
    assert found["evaluate"] == (1, 0, 0) and "score" not in found
    assert shapes(nodes=1, gpus_per_node=0, shards=3)["evaluate"] == (1, 0, 3)
    for machines in ({"gpus_per_node": 1}, {"gpus_per_node": 8, "shards": 1}):
        found = shapes(nodes=1, **machines)
        assert found["evaluate"] == (1, 1, 1) and found["score"] == (1, 0, 0)


def test_servers_have_the_gpus_themselves() -> None:
    found = shapes(SERVERS, nodes=2, gpus_per_node=8)
    assert found["sample"] == found["evaluate"] == (1, 0, 0)


def test_a_reward_model_gets_a_gpu() -> None:
    found = shapes(
        f"judge.judge={REWARD_MODEL}", f"evaluate.judge={REWARD_MODEL}", nodes=1, gpus_per_node=4
    )
    assert found["judge"] == found["score"] == (1, 1, 0)


def test_every_round_has_its_jobs() -> None:
    machines = layout("rounds=2", nodes=1, gpus_per_node=2)
    again = ["sample", "judge", "train", "evaluate", "score"]
    assert [stage.name for stage in machines.stages()] == [
        *("sft", *(f"{job}-1" for job in again), *(f"{job}-2" for job in again), "report")
    ]
    assert [*machines.jobs()] == ["sft", *again, "report"]


def test_a_command_says_what_the_user_said_but_for_the_accelerate_configurations() -> None:
    machines = layout(*ZERO2, "train.beta=0.3", nodes=2, gpus_per_node=8)
    train = machines.jobs()["train"]
    assert machines.command(train, Path("there")) == [
        *("dpo-dist", "train", str(RECIPE), "--set", "train.beta=0.3"),
        *("--set", "train.accelerate_config=there/accelerate_train.yaml"),
    ]


def test_workers_of_one_machine_are_not_asked_of_a_job_with_one_gpu() -> None:
    machines = layout("sample.engine.workers=8", nodes=1, gpus_per_node=8)
    for job in ("sample", "evaluate"):
        command = machines.command(machines.jobs()[job], Path())
        assert command[-2:] == ["--set", "sample.engine.workers=null"]


def test_what_costs_money_is_agreed_to_before_anything_is_submitted() -> None:
    with pytest.raises(NotConfirmed, match="pass --yes"):
        layout(f"judge.judge={CLAUDE}")
    machines = layout(f"judge.judge={CLAUDE}", yes=True)
    agreed = {
        stage.job for stage in machines.stages() if "--yes" in machines.command(stage, Path())
    }
    assert agreed == {"judge", "evaluate"}


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({"nodes": 0}, "--nodes 0: at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1: at least 0"),
        ({"shards": 0}, "--shards 0: at least 1"),
    ],
)
def test_impossible_machines_are_refused(machines: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout(**machines)
