"""Watching a real `dpo-dist sample` from another process, while it is at work and after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_dist.tools.watch.run import WatchedRun
from tests.conftest import ROOT

PROMPTS = 20


@pytest.mark.slow
def test_a_real_run_is_watched_from_its_first_candidate_to_its_end(
    tmp_path: Path, tiny_model: Path, write_run, write_jsonl
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"question {n}"} for n in range(PROMPTS)])
    run_file = write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        sample={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256, "batch_size": 1},
            "max_new_tokens": 96,
        },
    )
    words = [sys.executable, "-m", "dpo_dist"]
    root = tmp_path / "runs" / "test"
    sampling = subprocess.Popen([*words, "sample", str(run_file)], cwd=ROOT, start_new_session=True)
    try:
        run = WatchedRun.open(run_file)
        step = None
        deadline = time.monotonic() + 240
        while step is None or step.progress.done < 5 or step.average:
            assert sampling.poll() is None and time.monotonic() < deadline
            (step,) = (step for step in run.look() if step.name == "sample")
            assert step.state in ("waiting", "running")
            time.sleep(0.01)
        assert step.progress.total == 2 * PROMPTS
        assert step.holder.startswith(f"process {sampling.pid} on ")
        assert step.rate and step.seconds_left
        assert step.rate * step.seconds_left == pytest.approx(2 * PROMPTS - step.progress.done)
        os.killpg(sampling.pid, signal.SIGKILL)
    finally:
        sampling.kill()
        sampling.wait()
    assert {path.name for path in root.iterdir()} == {"sample", ".sample.lock"}

    # Nothing is held: the same command goes on, beside a watcher that ends with it.
    watching = subprocess.Popen(
        [*words, "watch", str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert subprocess.run([*words, "sample", str(run_file)], cwd=ROOT, check=False).returncode == 0
    said, _ = watching.communicate(timeout=60)
    assert re.search(r"running: \d+ of 40 candidates", said)
    assert said.splitlines()[-1].split()[:2] == ["sample", "done"]
    assert "20 of 20 kept" in said
