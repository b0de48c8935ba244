"""The rendered SLURM files on a real SLURM: the phases, training on two nodes, a signal to a task
of an array and to the training, a preemption, and what sbatch says to jobs that are too large to
run here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from launch.examples import ON_GPUS, RECIPE
from tests.conftest import ROOT
from tests.integration.trainings import losses, saved
from tests.slurm_cluster import Cluster, cluster, why_not

EPOCHS = 25
JOBS = ("sample", "judge", "train", "evaluate", "score", "report")
REASON = why_not()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None and not os.environ.get("CI"), reason=str(REASON)),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert REASON is None, REASON
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture
def run_file(tmp_path: Path, taught_model: Path, write_run, write_jsonl) -> Path:
    for name, count in (("prompts", 40), ("eval", 7)):
        rows = [{"id": f"{name}{n}", "prompt": f"{name} {n}"} for n in range(count)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    metrics = [{"type": "regex", "label": "Digits", "pattern": "[0-9]"}]
    zero2 = yaml.safe_load((ROOT / "accelerate_configs" / "cpu_zero2.yaml").read_text())
    (tmp_path / "zero2.yaml").write_text(yaml.safe_dump({**zero2, "num_processes": 1}))
    batch = {
        "bf16": False,
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "accelerate_config": str(tmp_path / "zero2.yaml"),
    }
    return write_run(
        run={"name": "test", "output_dir": str(tmp_path / "runs")},
        model={"base": str(taught_model), "dtype": "float32"},
        sample={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {"type": "hf", "max_model_len": 128, "batch_size": 4},
            "slots": [{"temperature": 1.0}, {"temperature": 1.0}],
            "max_new_tokens": 8,
        },
        judge={"judge": {"type": "metric", "metrics": metrics}, "canaries": None},
        preferences={"source": "judged", "validation_fraction": 0.2},
        train={
            "max_length": 128,
            "learning_rate": 1e-4,
            "num_epochs": EPOCHS,
            "eval_per_epoch": 1,
            "save_steps": 5,
            "kl": {"prompts": 0},
            **batch,
        },
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "max_new_tokens": 8,
            "metrics": metrics,
            "judge": {"type": "metric", "metrics": metrics},
        },
    )


def launch(slurm: Cluster, run_file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "dpo_dist", "launch", "slurm", str(run_file), *options]
    return subprocess.run(
        words, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, check=False
    )


def wait_for(condition: Callable[[], object], slurm: Cluster, what: str) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        states = slurm.states()
        assert not {"FAILED", "CANCELLED"} & set(states.values()), f"{what}: {states}"
        assert time.monotonic() < deadline, f"{what}: {states}\n{slurm.logs()}"
        time.sleep(0.1)


def going_on(log: Path) -> list[int]:
    """The steps that a training went on from."""
    return [int(step) for step in re.findall(r"resuming from step (\d+)", log.read_text())]


def test_all_phases_as_jobs_signalled_preempted_and_queued_again(
    slurm: Cluster, run_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs" / "test"
    done = launch(
        slurm,
        run_file,
        *("--nodes", "2", "--cpus", "2", "--time", "60", "--submit"),
        *("--setup", f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"),
    )
    assert done.returncode == 0, done.stderr
    numbers = {name: number for number, name in (x.split() for x in done.stdout.splitlines())}
    assert tuple(numbers) == JOBS

    # The last task of an array has the array's own number as SLURM_JOB_ID.
    log = {task: root / f"logs/test-sample-{numbers['sample']}_{task}.out" for task in (0, 1)}
    at_work = "shard 1/2"
    wait_for(lambda: log[1].exists() and at_work in log[1].read_text(), slurm, "sample")
    slurm.call("scancel", "--signal=USR1", "--batch", f"{numbers['sample']}_1")
    wait_for((root / "sample" / "manifest.json").exists, slurm, "sample, after its signal")
    assert "the job is requeued" in log[1].read_text()
    assert "the job is requeued" not in log[0].read_text()

    train = root / "train"
    log_of_training = root / f"logs/test-train-{numbers['train']}.out"
    wait_for(lambda: saved(train), slurm, "train")
    slurm.call(
        *("sbatch", "--partition=urgent", "--job-name=urgent", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=true"),
    )
    wait_for(lambda: going_on(log_of_training), slurm, "train, after it was preempted")
    assert slurm.states()["urgent"] == "COMPLETED"
    [preempted_at] = going_on(log_of_training)
    wait_for(lambda: saved(train) > preempted_at, slurm, "train, again")
    slurm.call("scancel", "--signal=USR1", "--batch", numbers["train"])
    wait_for((root / "report" / "report.html").exists, slurm, "report")
    said = log_of_training.read_text()
    assert said.count("node 1 of 2: starting its ranks") >= 3, "before, between and after"
    assert said.count("stopped with exit code 75; the job is requeued") == 2
    assert said.count("which is saved") >= 2 and len(going_on(log_of_training)) == 2
    pairs = json.loads((train / "manifest.json").read_text())["pairs"]["train"]
    assert len(losses(train)) == EPOCHS * -(-pairs // 2), "every step once"
    wait_for(lambda: slurm.states().get("test-report") == "COMPLETED", slurm, "the last job")
    ended = {f"test-{job}": "COMPLETED" for job in JOBS}
    assert slurm.states() == {**ended, "urgent": "COMPLETED"}


def test_sbatch_takes_the_files_for_nodes_that_are_there(slurm: Cluster, tmp_path: Path) -> None:
    overrides = (
        *ON_GPUS,
        *("sft.global_batch_size=64", "train.global_batch_size=64"),
        f"run.output_dir={tmp_path}",
    )
    settings = [word for override in overrides for word in ("--set", override)]
    jobs = tmp_path / "incident-triage" / "launch" / "slurm"

    def answers(nodes: str) -> dict[str, int]:
        done = launch(slurm, RECIPE, "--nodes", nodes, "--gpus-per-node", "8", *settings)
        assert done.returncode == 0, done.stderr
        return {
            path.stem: slurm.run("sbatch", "--test-only", str(path)).returncode
            for path in jobs.glob("*.sbatch")
        }

    assert answers("2") == dict.fromkeys(("sft", *JOBS), 0)
    refused = {job for job, status in answers("4").items() if status}
    assert refused == {"sft", "train"}
