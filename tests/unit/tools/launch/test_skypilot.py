"""skypilot.yaml: a task for each stage. SkyPilot itself is too large to be installed for this."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_dist.cli import parser
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.runs.run import Run
from dpo_dist.tools.arguments import nodes_of
from dpo_dist.tools.launch.layout import Layout
from dpo_dist.tools.launch.skypilot import SkyPilot
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import layout

RUN_FILE = Path("recipes/incident_triage/run.yaml")
ON_VOLUME = SkyPilot(gpu="H100", volume="shared-runs", spot=True)
IN_BUCKET = SkyPilot(gpu="H100", bucket="my-runs")


@pytest.fixture
def accelerate(tmp_path: Path) -> Path:
    path = tmp_path / "zero2.yaml"
    path.write_text((ROOT / "accelerate_configs" / "cpu_zero2.yaml").read_text())
    return path


@pytest.fixture
def render(accelerate: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    overrides = tuple(
        f"{phase}.{setting}"
        for phase in ("sft", "train")
        for setting in (
            f"accelerate_config={accelerate}",
            "micro_batch_size=1",
            "global_batch_size=16",
        )
    )

    def tasks(target: SkyPilot, more: tuple[str, ...] = (), **machines: Any) -> dict[str, dict]:
        run = Run(load_config(RUN_FILE, (*overrides, *more)))
        machines = {"gpus_per_node": 8, **machines}
        layout = Layout(RUN_FILE, run, (*overrides, *more), workdir=Path(), **machines)
        header, *tasks = yaml.safe_load_all(target.files(layout)["skypilot.yaml"])
        assert header == {"name": "incident-triage"}
        return {task["name"].removeprefix("incident-triage-"): task for task in tasks}

    return tasks


def run_task(task: dict, tmp_path: Path, **sky: str) -> list[str]:
    """Run a task's script as SkyPilot would, and return what `dpo-dist` is told last."""
    home = tmp_path / "home"
    dpo_dist = home / "dpo-dist" / "bin" / "dpo-dist"
    dpo_dist.parent.mkdir(parents=True, exist_ok=True)
    dpo_dist.write_text('#!/bin/sh\necho dpo-dist\nfor word; do echo "$word"; done\n')
    dpo_dist.chmod(0o755)
    script = task["run"].replace("/tmp/accelerate_", f"{tmp_path}/accelerate_")
    done = subprocess.run(
        ["bash", "-c", script],
        env={"HOME": str(home), "PATH": os.environ["PATH"], **sky},
        capture_output=True,
        text=True,
        check=True,
    )
    *before, last = done.stdout.split("dpo-dist\n")
    assert len(before) == (2 if "preflight" in task["run"] else 1)
    return last.splitlines()


def node(rank: int, ips: str = "10.0.0.1\n10.0.0.2", job: str = "1") -> dict[str, str]:
    return {
        "SKYPILOT_NODE_IPS": ips,
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_TASK_ID": "sky-managed-2026-11-26-10-00-00-123456_incident-triage_1-3",
        "SKYPILOT_INTERNAL_JOB_ID": job,
    }


def test_machines_train_together_and_share_the_prompts(render, tmp_path: Path) -> None:
    tasks = render(ON_VOLUME, nodes=2)
    assert list(tasks) == ["sft", "sample", "judge", "train", "evaluate", "score", "report"]
    assert [task["num_nodes"] for task in tasks.values()] == [2, 2, 1, 2, 2, 1, 1]
    told = [run_task(tasks["train"], tmp_path, **node(rank)) for rank in (0, 1)]
    leader, other = [nodes_of(parser().parse_args(words)) for words in told]
    assert leader is not None and other is not None
    assert (leader.count, leader.rank, leader.address) == (2, 0, "10.0.0.1")
    assert other == replace(leader, rank=1)
    assert run_task(tasks["sample"], tmp_path, **node(1))[-2:] == ["--shard", "1/2"]


def test_every_start_has_an_id_of_its_own(render, tmp_path: Path) -> None:
    task = render(ON_VOLUME, nodes=2)["train"]
    starts = [
        node(0),
        node(0, job="2"),  # started again on the same machines
        node(0, ips="10.0.0.1\n10.0.0.9"),  # one of them is another
    ]
    ids = [run_task(task, tmp_path, **start)[-1] for start in starts]
    assert len(set(ids)) == 3


def test_the_accelerate_configuration_travels_with_the_task(render, tmp_path: Path) -> None:
    task = render(ON_VOLUME, nodes=2)["train"]
    run_task(task, tmp_path, **node(0))
    settings = yaml.safe_load((tmp_path / "accelerate_train.yaml").read_text())
    assert settings["num_processes"] == 16 and settings["num_machines"] == 2
    assert "train.accelerate_config=/tmp/accelerate_train.yaml" in task["run"]


def test_every_command_is_one_of_dpo_dist(render, tmp_path: Path) -> None:
    alone = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    for name, task in render(IN_BUCKET).items():
        options = parser().parse_args(run_task(task, tmp_path, **alone))
        assert options.command == name.replace("score", "evaluate")
        assert "run.output_dir=/shared/runs" in options.set


def test_machines_are_checked_before_they_train(render) -> None:
    for name, task in render(IN_BUCKET).items():
        lines = task["run"].splitlines()
        checked = lines[-2].startswith("dpo-dist preflight recipes/")
        assert checked == (name in ("sft", "train"))


def test_gpus_are_rented_for_what_needs_them(render) -> None:
    tasks = render(ON_VOLUME, nodes=2)
    for name in ("sft", "sample", "train", "evaluate"):
        assert tasks[name]["resources"]["accelerators"] == "H100:8"
        assert tasks[name]["resources"]["use_spot"]
    for name in ("judge", "score", "report"):
        # Not spot machines: what a judge was paid for is not to be lost with one.
        assert not {"accelerators", "use_spot"} & set(tasks[name]["resources"])
    for task in tasks.values():
        assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def test_one_machine_gives_its_gpus_back_before_a_judge_thinks(render, tmp_path: Path) -> None:
    tasks = render(IN_BUCKET)
    assert list(tasks) == ["sft", "sample", "judge", "train", "evaluate", "score", "report"]
    alone = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    assert run_task(tasks["evaluate"], tmp_path, **alone)[-2:] == ["--shard", "0/1"]
    assert "accelerators" not in tasks["score"]["resources"]


def test_the_disk_holds_what_waits_for_the_bucket(render) -> None:
    sizes = {
        (target.bucket is None, name): task["resources"]["disk_size"]
        for target in (IN_BUCKET, ON_VOLUME)
        for name, task in render(
            target, more=("model.base=mistralai/Mistral-7B-v0.1", "train.method={type: full}")
        ).items()
        if "accelerators" in task["resources"]
    }
    # 7.24 B weights: 29 GB as they are downloaded; three checkpoints of 16 bytes a weight.
    assert sizes.pop((False, "train")) == 64 + 406
    assert set(sizes.values()) == {256}


def test_keys_are_named_and_never_written(render, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nottobeseen0123456789")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for task in render(IN_BUCKET).values():
        assert set(task["secrets"].values()) == {""}
    command = IN_BUCKET.submission(Path("x"), layout("train.beta=0.3"))
    assert command == ["sky", "jobs", "launch", "--secret", "HF_TOKEN", "x/skypilot.yaml"]


def test_tasks_meet_in_the_same_place(render) -> None:
    for task in render(ON_VOLUME, nodes=2).values():
        assert task["volumes"] == {"/shared": "shared-runs"}
    for task in render(IN_BUCKET).values():
        assert task["file_mounts"]["/shared"]["name"] == "my-runs"
        assert task["file_mounts"]["/shared"]["mode"] == "MOUNT_CACHED"


def test_what_cannot_work_is_refused(render) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        SkyPilot(gpu="H100")
    with pytest.raises(ConfigError, match="there is no locking"):
        render(IN_BUCKET, nodes=2)
    with pytest.raises(ConfigError, match="on GPUs"):
        render(IN_BUCKET, gpus_per_node=0)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shellcheck_has_nothing_to_say(render, tmp_path: Path, part: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert shellcheck.exists(), "make setup installs it"
    for name, task in render(ON_VOLUME, nodes=2).items():
        script = tmp_path / f"{name}.sh"
        script.write_text(f"#!/usr/bin/env bash\n{task[part]}")
        checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
