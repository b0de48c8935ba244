"""submit.sh, run against a cluster that does what the test has planned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.tools.launch.kubernetes.target import Kubernetes
from dpo_dist.tools.launch.render import write
from tests.conftest import ROOT
from tests.unit.tools.launch.test_kubernetes import CLUSTER, layout

STAGES = ["sft", "sample", "judge", "train", "evaluate", "score", "report"]


@dataclass
class Cluster:
    folder: Path

    def submit(self, **change: Any) -> subprocess.CompletedProcess[str]:
        held = json.loads(self._state.read_text()) if self._state.exists() else {}
        self._state.write_text(json.dumps({**held, **change}))
        (self.folder / "calls").write_text("")
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "KUBECTL_CLUSTER": str(self._state),
            "KUBECTL_CALLS": str(self.folder / "calls"),
            "POLL_SECONDS": "0",
        }
        script = self.folder / "launch" / "submit.sh"
        return subprocess.run(
            [script], env=environment, cwd="/", capture_output=True, text=True, timeout=120
        )

    @property
    def calls(self) -> list[str]:
        """What the last `submit` has asked for, in short: `apply train`."""
        short = []
        for line in (self.folder / "calls").read_text().splitlines():
            verb, _, name = line.partition(" ")
            kind, _, job = name.partition("/")
            if kind in ("job", "trainjob"):
                short.append(f"{verb} {job.split('-')[3]}")
            elif verb == "logs":
                short.append(f"logs {line.rpartition('=')[2]}")
        return short

    @property
    def _state(self) -> Path:
        return self.folder / "cluster.json"


def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Kubernetes) -> Cluster:
    monkeypatch.chdir(ROOT)
    write(target.files(layout(nodes=2, shards=2)), tmp_path / "launch")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    text = (ROOT / "tests" / "kubectl.py").read_text().partition("\n")[2]
    kubectl.write_text(f"#!{sys.executable}\n{text}")
    kubectl.chmod(0o755)
    return Cluster(tmp_path)


@pytest.fixture
def by_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return cluster(tmp_path, monkeypatch, CLUSTER)


@pytest.fixture
def by_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return cluster(tmp_path, monkeypatch, Kubernetes(image=CLUSTER.image, trainer="job"))


def applied(*stages: str) -> list[str]:
    return [f"apply {stage}" for stage in stages]


def test_each_phase_waits_for_the_one_before_and_is_done_once(by_trainer: Cluster) -> None:
    done = by_trainer.submit()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done: incident-triage\n")
    assert by_trainer.calls == applied(*STAGES)
    assert by_trainer.submit().returncode == 0
    assert by_trainer.calls == []


def test_a_failure_ends_the_submission_and_the_next_one_goes_on_there(by_trainer: Cluster) -> None:
    ended = by_trainer.submit(plan={"judge": ["Failed=BackoffLimitExceeded"]})
    assert ended.returncode == 1
    assert "the last words" in ended.stderr
    assert by_trainer.calls == [*applied("sft", "sample", "judge"), "logs judge"]
    assert by_trainer.submit().returncode == 0
    assert by_trainer.calls == ["delete judge", *applied(*STAGES[2:])]


def test_a_plain_job_of_several_nodes_is_started_again(by_job: Cluster) -> None:
    lost = "Failed=BackoffLimitExceeded"
    assert by_job.submit(plan={"train": [lost, lost]}).returncode == 0
    again = ["apply train", "delete train"]
    before = applied("sft", "sample", "judge")
    assert by_job.calls == [*before, *again, *again, *applied(*STAGES[3:])]


def test_but_not_for_ever_and_not_on_bad_input(by_job: Cluster) -> None:
    ended = by_job.submit(plan={"sft": ["Failed=PodFailurePolicy"]})
    assert ended.returncode == 1
    assert by_job.calls == ["apply sft", "logs sft"]
    ended = by_job.submit(plan={"sft": ["Failed=BackoffLimitExceeded"] * 20})
    assert ended.returncode == 1
    assert by_job.calls.count("apply sft") == 6


def test_an_api_server_that_is_away_is_waited_for(by_trainer: Cluster) -> None:
    # The first question decides what to submit: without an answer, nothing is.
    ended = by_trainer.submit(away=[1])
    assert ended.returncode == 1 and "refused" in ended.stderr
    assert by_trainer.calls == []
    assert by_trainer.submit(asked=0, away=[2, 3]).returncode == 0
    assert by_trainer.calls == applied(*STAGES)


def test_shellcheck_has_nothing_to_say(by_trainer: Cluster) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert shellcheck.exists(), "make setup installs it"
    script = by_trainer.folder / "launch" / "submit.sh"
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
