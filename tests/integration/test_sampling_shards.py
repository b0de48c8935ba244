"""Sampling in shards, as array jobs and as workers: every prompt once, one manifest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.records import Candidate, Generation
from tests.conftest import ROOT

PROMPTS = 17  # divisible by nothing
TOO_LONG = "p5"


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    rows = [{"id": f"p{n}", "prompt": f"question {n}"} for n in range(PROMPTS)]
    rows[5]["prompt"] = "word " * 60
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", [{"id": f"e{n}", "prompt": f"e {n}"} for n in range(5)])
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        sample={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256, "batch_size": 2},
            "max_new_tokens": 8,
        },
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "arms": ["base", "sft"],
            "max_new_tokens": 8,
            "metrics": [{"type": "faithful_quotes", "field": "evidence", "label": "Faithful"}],
        },
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "test" / "sample"


def sample(run_file: Path, *options: str) -> int:
    return main(["sample", str(run_file), *options])


def check_complete(out: Path) -> None:
    """Every prompt that fits, both slots, in order, drawn once in all journals together."""
    ids = [f"p{n}" for n in range(PROMPTS) if f"p{n}" != TOO_LONG]
    found = [(c.prompt_id, c.slot) for c in read_records(out / "candidates.jsonl", Candidate)]
    assert found == [(name, slot) for name in ids for slot in (0, 1)]
    drawn = Counter(
        (c.prompt_id, c.slot)
        for journal in out.glob("*.journal.jsonl")
        for c in read_records(journal, Candidate)
    )
    assert drawn == Counter(found)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    kept = PROMPTS - 1
    assert counts == {"in": PROMPTS, "kept": kept, "dropped": {"prompt_too_long": 1}}


def test_the_shard_that_completes_the_set_writes_the_manifest(
    run_file: Path, out: Path, capsys
) -> None:
    for shard in ("2/3", "0/3"):
        assert sample(run_file, "--shard", shard) == 0
        assert "not complete yet" in capsys.readouterr().err
        assert not (out / "manifest.json").exists()
    assert sample(run_file, "--shard", "1/3") == 0
    check_complete(out)
    written = (out / "manifest.json").read_bytes()
    assert sample(run_file, "--shard", "0/3") == 0
    assert sample(run_file) == 0
    assert (out / "manifest.json").read_bytes() == written
    engines = json.loads(written)["engines"]
    assert len(engines) == 3, "every shard draws noise of its own"


def test_another_number_of_shards_goes_on_with_what_is_there(run_file: Path, out: Path) -> None:
    assert sample(run_file, "--shard", "0/3") == 0
    assert sample(run_file, "--shard", "1/2") == 0
    assert sample(run_file) == 0
    check_complete(out)


def test_a_shard_reads_over_the_torn_line_of_another(run_file: Path, out: Path) -> None:
    assert sample(run_file, "--shard", "0/2") == 0
    torn = out / "candidates-0-of-2.journal.jsonl"
    lines = torn.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert sample(run_file, "--shard", "1/2") == 0
    assert not (out / "manifest.json").exists()
    assert sample(run_file, "--shard", "0/2") == 0
    check_complete(out)


def test_more_shards_than_prompts_lose_nothing(run_file: Path, out: Path) -> None:
    for index in range(PROMPTS + 2):
        assert sample(run_file, "--shard", f"{index}/{PROMPTS + 2}") == 0
    check_complete(out)


def test_shards_of_an_evaluation_only_generate(run_file: Path, tmp_path: Path, capsys) -> None:
    evaluate = tmp_path / "runs" / "test" / "evaluate"
    for shard in ("0/2", "1/2", "0/1"):
        assert main(["evaluate", str(run_file), "--shard", shard]) == 0
    assert not (evaluate / "manifest.json").exists()
    assert main(["evaluate", str(run_file)]) == 0
    assert not (evaluate / "generations.journal.jsonl").read_bytes(), "nothing was left to generate"
    answers = list(read_records(evaluate / "generations.jsonl", Generation))
    assert [(a.arm, a.prompt_id) for a in answers] == [
        (arm, f"e{n}") for arm in ("base", "sft") for n in range(5)
    ]
    assert json.loads((evaluate / "manifest.json").read_text())["generations"] == 10


@pytest.mark.parametrize("shard", ["3", "3/3", "-1/2", "a/b", "1/0"])
def test_what_is_no_shard_is_refused(run_file: Path, shard: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        sample(run_file, f"--shard={shard}")
    assert "is not a shard: write INDEX/COUNT" in capsys.readouterr().err


def test_a_shard_cannot_move_the_work_of_others_aside(run_file: Path, capsys) -> None:
    assert sample(run_file, "--shard", "0/2", "--force") == 2
    assert "other shards may be running" in capsys.readouterr().err


def start(run_file: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dpo_dist", "sample", str(run_file), *options]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def worker_of(process: subprocess.Popen[str], shard: str) -> int:
    """The process id of the worker that has a shard."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"--shard" in words and words[words.index(b"--shard") + 1] == shard.encode():
                return int(child)
        time.sleep(0.01)
    raise AssertionError(f"no worker has the shard {shard}")


def wait_for_lines(journal: Path, lines: int) -> None:
    deadline = time.monotonic() + 240
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.005)


SLOWLY = ("--set=sample.max_new_tokens=160", "--set=sample.engine.batch_size=1")
TWO = (*SLOWLY, "--set=sample.engine.workers=2")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_redoes_nothing(
    run_file: Path, out: Path
) -> None:
    process = start(run_file, *TWO)
    killed = worker_of(process, "1/2")
    journal = out / "candidates-1-of-2.journal.jsonl"
    wait_for_lines(journal, 3)
    os.kill(killed, signal.SIGKILL)
    before = journal.read_bytes()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "worker 1/2 exited with -9; restarting it" in said
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    check_complete(out)
    assert "sample: done in" in said and "already done" not in said
    assert "answers cut off; raise sample.max_new_tokens" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["engines"]) == 3
    assert manifest["candidates_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_stopping_stops_the_workers_and_the_same_command_goes_on(
    run_file: Path, out: Path, number: signal.Signals
) -> None:
    process = start(run_file, *TWO)
    workers = [worker_of(process, shard) for shard in ("0/2", "1/2")]
    wait_for_lines(out / "candidates-0-of-2.journal.jsonl", 2)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do
    _, said = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], said
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not (out / "manifest.json").exists()
    assert sample(run_file, *SLOWLY) == 0
    check_complete(out)


@pytest.mark.slow
def test_a_worker_that_cannot_begin_ends_the_phase_with_its_words(
    run_file: Path, out: Path
) -> None:
    process = start(run_file, *TWO, "--set=sample.engine.max_model_len=20")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2, said
    assert "no prompt leaves room" in said
