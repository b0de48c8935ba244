"""What is asked of SLURM; tests/integration/test_slurm.py runs it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_dist.tools.launch.slurm import Slurm
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import ONE_EACH, ZERO2, layout


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def rendered(target: Slurm, *overrides: str, **machines: object) -> dict[str, str]:
    shape = {"nodes": 2, "gpus_per_node": 8, "workdir": Path("/shared/work dir")} | machines
    return target.files(layout(*ZERO2, *ONE_EACH, *overrides, **shape))


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def test_a_training_job_asks_for_whole_nodes_and_starts_one_task_on_each() -> None:
    files = rendered(Slurm(partition="gpu", cpu_partition="cpu", time="1:00:00", account="me"))
    assert directives(files["train.sbatch"]) == [
        *("--requeue", "--job-name=incident-triage-train", "--chdir='/shared/work dir'"),
        *("--output=runs/incident-triage/logs/%x-%j.out", "--open-mode=append"),
        *("--signal=B:USR1@300", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=64"),
        *("--gres=gpu:8", "--partition=gpu", "--account=me", "--time=1:00:00"),
    ]
    last = files["train.sbatch"].splitlines()[-1]
    assert last.startswith("run_step runs/incident-triage/launch/slurm/node.sh dpo-dist train")


def test_the_nodes_are_told_of_each_other_inside_of_srun_and_looked_at_before() -> None:
    lines = rendered(Slurm())["node.sh"].splitlines()
    told = '--nodes "$SLURM_NNODES" --node-rank "$SLURM_PROCID"'
    assert any(told in line for line in lines)
    preflight = next(line for line in lines if line.startswith("dpo-dist preflight"))
    assert "train.accelerate_config=runs/incident-triage/launch/slurm/" in preflight
    assert lines[-1] == 'exec "$@" "${nodes[@]}"'


def test_one_node_needs_no_others() -> None:
    script = rendered(Slurm(), nodes=1)["node.sh"]
    assert script.splitlines()[-1] == 'exec "$@"' and "--main-address" not in script


def test_an_array_counts_its_shards_and_goes_without_gpus_where_there_are_none() -> None:
    files = rendered(Slurm(cpus=3))
    sample = directives(files["sample.sbatch"])
    assert {"--array=0-15", "--gres=gpu:1", "--cpus-per-task=8"} <= set(sample)
    assert '--shard "$SLURM_ARRAY_TASK_ID/16" "$@"' in files["sample.sbatch"]
    judge = directives(files["judge.sbatch"])
    assert "--cpus-per-task=3" in judge and not any("gres" in line for line in judge)


def test_options_containers_and_setup_reach_every_job() -> None:
    target = Slurm(
        sbatch=("--qos=high",),
        srun=("--container-image=a b",),
        setup=("module load cuda",),
        container="apptainer exec --nv 'my image.sif'",
    )
    files = rendered(target)
    assert all("--qos=high" in directives(files[name]) for name in files if "sbatch" in name)
    assert "--wait=360 '--container-image=a b' \"$@\" &" in files["job.sh"]
    assert "\nmodule load cuda\n" in files["job.sh"]
    words = shlex.split(files["judge.sbatch"].splitlines()[-1])
    assert words[1:6] == ["apptainer", "exec", "--nv", "my image.sif", "dpo-dist"]


def test_rounds_are_submitted_with_their_number() -> None:
    submit = rendered(Slurm(), "rounds=2")["submit.sh"]
    assert "submit train --round 1\nsubmit evaluate --round 1\nsubmit score --round 1\n" in submit
    assert submit.rstrip().endswith("submit score --round 2\nsubmit report")


def test_awkward_names_pass_shellcheck(tmp_path: Path) -> None:
    target = Slurm(setup=("module load 'a b'",))
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in rendered(target, "rounds=2", "train.wpo=false").items():
        (folder / name).write_text(text)
    scripts = [*folder.glob("*.sh"), *folder.glob("*.sbatch")]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
