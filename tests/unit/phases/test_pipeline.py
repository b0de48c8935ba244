"""A training that several machines do together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import Preempted
from dpo_dist.phases import pipeline
from dpo_dist.runs.run import Run
from dpo_dist.training.nodes import Rendezvous, rendezvous_folder
from tests.unit.training.test_nodes import node


def test_sigterm_before_a_training_is_told_to_the_others(
    tmp_path: Path, write_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate = tmp_path / "two.yaml"
    accelerate.write_text("{num_machines: 2, num_processes: 2}\n")
    config = load_config(
        write_run(
            model={"base": "m"},
            preferences={"source": "path", "path": "p.jsonl"},
            train={"accelerate_config": str(accelerate)},
        )
    )
    monkeypatch.setattr(pipeline, "check_address", lambda nodes: None)
    monkeypatch.setattr(
        pipeline, "_is_trained", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    run = Run(config)
    with pytest.raises(Preempted):
        pipeline.start_training("train", run, [], nodes=node(0))
    rendezvous = Rendezvous(rendezvous_folder(run.directory("train"), node(0)), node(1))
    assert rendezvous.ended() == (75, "stopped while no training was running")
