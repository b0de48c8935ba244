"""local.sh, run for real, with a `dpo-dist` and an `nvidia-smi` that only say what they are asked:
this machine may have no GPU. tests/integration/test_local_script.py runs it whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from dpo_dist.config.runfile import load_config
from dpo_dist.phases.pipeline import check_before_work
from dpo_dist.runs.run import Run
from dpo_dist.tools.launch.local import Local
from dpo_dist.tools.launch.render import write
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import RECIPE, ZERO2, layout


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the shipped configurations and a `bin` before all others."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "dpo-dist", 'printf "%s\\n" "$@" > asked; exit 3')
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def run(
    machine: Path, *overrides: str, arguments: tuple[str, ...] = (), **variables: str
) -> tuple[list[str], dict[str, str]]:
    """What dpo-dist was asked for, and the settings among it."""
    write(Local().files(layout(*overrides, workdir=machine)), machine)
    environment = {name: value for name, value in os.environ.items() if "CUDA" not in name}
    environment |= {"PATH": f"{machine}/bin:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        [machine / "local.sh", *arguments], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 3, f"the exit code is dpo-dist's\n{done.stderr}"
    words = (machine / "asked").read_text(encoding="utf-8").splitlines()
    settings = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    return words, dict(setting.split("=", 1) for setting in settings)


def gpus(machine: Path, count: int) -> None:
    listed = "\n".join(f"echo 'GPU {n}: NVIDIA (UUID: GPU-{n})'" for n in range(count))
    program(machine / "bin" / "nvidia-smi", listed or "exit 9")


def test_without_gpus_it_trains_on_the_processors(machine: Path) -> None:
    gpus(machine, 0)
    words, settings = run(machine, "train.beta=0.3", arguments=("--force",))
    assert words[:2] == ["run", "recipes/incident_triage/run.yaml"] and words[-1] == "--force"
    assert settings["train.beta"] == "0.3"
    for phase in ("sft", "train"):
        assert settings[f"{phase}.accelerate_config"] == "cpu"


@pytest.mark.parametrize(
    ("seen", "visible", "expected", "processes"),
    [
        *((1, None, "single_gpu", 1), (4, None, "zero2", 4), (4, "0,2", "zero2", 2)),
        (8, None, "zero2", 8),  # what a step of the demo's train phase has
    ],
)
def test_the_configuration_follows_the_gpus(
    machine: Path, seen: int, visible: str | None, expected: str, processes: int
) -> None:
    gpus(machine, seen)
    _, settings = run(machine, **({"CUDA_VISIBLE_DEVICES": visible} if visible else {}))
    made = yaml.safe_load((machine / settings["train.accelerate_config"]).read_text())
    shipped = yaml.safe_load((ROOT / "accelerate_configs" / f"{expected}.yaml").read_text())
    assert made == {**shipped, "num_processes": processes, "num_machines": 1}


@pytest.mark.parametrize(
    ("seen", "overrides", "processes", "micro"),
    [
        (8, (), 8, 1),
        (3, (), 2, 4),
        (5, ("train.global_batch_size=64", "train.micro_batch_size=16"), 4, 16),
        (8, ("train.global_batch_size=24", "train.micro_batch_size=6"), 8, 3),
        # Another micro-batch would be another loss.
        (8, ("train.loss=aot",), 2, 4),
    ],
)
def test_the_global_batch_stays_and_as_many_gpus_as_can_share_it(
    machine: Path,
    seen: int,
    overrides: tuple[str, ...],
    processes: int,
    micro: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(machine, seen)
    _, settings = run(machine, *overrides)
    made = machine / settings["train.accelerate_config"]
    assert yaml.safe_load(made.read_text())["num_processes"] == processes
    again = load_config(ROOT / RECIPE, [f"{key}={value}" for key, value in settings.items()])
    assert again.train.micro_batch_size == micro
    assert again.train.global_batch_size == layout(*overrides).config.train.global_batch_size
    monkeypatch.chdir(machine)
    check_before_work(Run(again))


def test_the_run_file_s_own_is_kept_where_it_is_for_gpus(machine: Path, tmp_path: Path) -> None:
    gpus(machine, 3)
    own = ROOT / "accelerate_configs" / "cpu_zero3.yaml"
    run_file = tmp_path / "run.yaml"
    text = (ROOT / "recipes/incident_triage/run.yaml").read_text(encoding="utf-8")
    run_file.write_text(
        text.replace("accelerate_config: cpu", f"accelerate_config: {own}"), encoding="utf-8"
    )
    write(Local().files(layout(run_file=run_file, workdir=machine)), machine)
    script = (machine / "local.sh").read_text(encoding="utf-8")
    assert f"choose train 8 4 1 {own}\n" in script and "choose sft 4 4 1\n" in script


def test_what_is_given_is_not_chosen(machine: Path) -> None:
    gpus(machine, 4)
    _, settings = run(machine, *ZERO2)
    assert settings["train.accelerate_config"] == ZERO2[1].partition("=")[2]
    _, settings = run(machine, ACCELERATE_CONFIG="mine.yaml")
    assert settings["train.accelerate_config"] == settings["sft.accelerate_config"] == "mine.yaml"


def test_what_it_says_is_logged(machine: Path) -> None:
    gpus(machine, 0)
    program(machine / "bin" / "dpo-dist", "echo out; echo err >&2; touch asked; exit 3")
    run(machine)
    (log,) = machine.glob("runs/incident-triage/logs/local-*.log")
    assert sorted(log.read_text(encoding="utf-8").split()) == ["err", "out"]
