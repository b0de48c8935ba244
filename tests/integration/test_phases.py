"""The phases around training on a tiny model: kill -9, resume, skip, refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dpo_dist.cli import main
from dpo_dist.config.runfile import load_config
from dpo_dist.phases.pipeline import run_phase
from dpo_dist.phases.sample import SamplePhase
from dpo_dist.runs.manifests import SampleResult
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import PhaseDirectory, read_records, write_records
from dpo_dist.storage.manifest import Counts
from dpo_dist.storage.records import Ballot, Candidate, Verdict
from dpo_dist.system.console import YES
from tests.anthropic_server import KEY, serve
from tests.conftest import ROOT

PROMPTS = 24


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Iterator[Path]:
    """A run whose judge is Claude on a loopback server that prefers GOOD."""
    rows = [{"id": f"p{n}", "prompt": f"question {n} " + "x" * (n % 7)} for n in range(PROMPTS)]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    with serve() as server:
        yield write_run(
            model={"base": str(tiny_model), "dtype": "float32"},
            sample={
                "prompts": {"path": "prompts.jsonl"},
                "engine": {"type": "hf", "max_model_len": 512, "batch_size": 2},
                "slots": [{"temperature": 0.7}, {"temperature": 1.2, "top_p": 0.9}],
                "max_new_tokens": 120,
            },
            judge={
                "judge": {
                    "type": "claude",
                    "model": "m",
                    "rubric": "rubric.md",
                    "base_url": server.url,
                    "concurrency": 1,
                }
            },
        )


def start(phase: str, run_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dpo_dist", phase, str(run_file)]
    environment = os.environ | {"ANTHROPIC_API_KEY": KEY, YES: "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def finish(phase: str, run_file: Path) -> None:
    assert start(phase, run_file).wait(timeout=300) == 0


def kill_when(process: subprocess.Popen[bytes], journal: Path, lines: int, number: int) -> None:
    """Send a signal as soon as the journal holds some lines."""
    deadline = time.monotonic() + 240
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, "the phase ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)


@pytest.mark.slow
def test_killed_sampling_redoes_only_what_is_missing(run_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "test" / "sample"
    journal = out / "candidates.journal.jsonl"
    process = start("sample", run_file)
    kill_when(process, journal, 4, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    before = journal.read_bytes()
    before = before[: before.rfind(b"\n") + 1]

    finish("sample", run_file)
    assert journal.read_bytes().startswith(before), "finished records stay byte for byte"
    candidates = list(read_records(out / "candidates.jsonl", Candidate))
    expected = [(f"p{n}", slot) for n in range(PROMPTS) for slot in (0, 1)]
    assert [(c.prompt_id, c.slot) for c in candidates] == expected
    assert {c.settings["temperature"] for c in candidates if c.slot == 1} == {1.2}
    assert all("transformers" in c.engine for c in candidates)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts == {"in": PROMPTS, "kept": PROMPTS, "dropped": {"prompt_too_long": 0}}


@pytest.mark.slow
def test_ctrl_c_leaves_a_directory_to_go_on_with_and_says_how(
    run_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "test" / "sample"
    command = [sys.executable, "-m", "dpo_dist", "run", str(run_file)]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    kill_when(process, out / "candidates.journal.jsonl", 2, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith(f"run the same command again:\n  dpo-dist run {run_file}")
    assert errors.count("run the same command again") == 1, "the phase leaves it to `run`"
    assert not (out / "manifest.json").exists()
    finish("sample", run_file)


def write_candidates(run_file: Path, monkeypatch) -> list[tuple[str, str]]:
    """Complete the sample phase with planted answers, as if they had been generated."""
    texts = [("GOOD", "bad") if n % 3 else ("bad", "GOOD") for n in range(PROMPTS)]
    texts[5] = ("same", "same")
    planted = [
        Candidate(
            prompt_id=f"p{n}",
            slot=slot,
            text=text,
            token_ids=(1,),
            finish_reason="length" if (n, slot) == (7, 1) else "stop",
            settings={},
            engine="planted",
        )
        for n, pair in enumerate(texts)
        for slot, text in enumerate(pair)
    ]

    def write(phase: SamplePhase, run: Run, out: PhaseDirectory) -> SampleResult:
        write_records(out.path / "prompts.jsonl", run.prompts())
        write_records(out.path / "candidates.jsonl", planted)
        counts = Counts(received=PROMPTS, kept=PROMPTS)
        return SampleResult(counts=counts, candidates=len(planted), cut_off=1, engines=("planted",))

    with monkeypatch.context() as patch:
        patch.setattr(SamplePhase, "run", write)
        run_phase("sample", Run(load_config(run_file)))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["online", "batch"])
def test_the_key_is_found_nowhere(
    run_file: Path, tmp_path: Path, monkeypatch, transport: str
) -> None:
    """The server refuses this key, and everything that can talk is told to."""
    canary = "sk-ant-canary-5f3a9c1e7b"
    write_candidates(run_file, monkeypatch)
    environment = os.environ | {
        "ANTHROPIC_API_KEY": canary,
        "ANTHROPIC_LOG": "debug",
        "PYTHONFAULTHANDLER": "1",
        YES: "1",
    }
    command = [sys.executable, "-m", "dpo_dist", "judge", str(run_file)]
    command += ["--set", f"judge.judge.transport={transport}"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "refused the credentials" in ended.stderr
    assert "debug" in ended.stderr.casefold(), "the SDK was talking"
    assert canary not in ended.stdout + ended.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(canary in path.read_text(errors="replace") for path in written)


@pytest.mark.slow
def test_killed_judging_keeps_what_was_paid_for_and_labels_right(
    run_file: Path, tmp_path: Path, monkeypatch
) -> None:
    import pyarrow.parquet

    texts = write_candidates(run_file, monkeypatch)
    out = tmp_path / "runs" / "test" / "judge"
    process = start("judge", run_file)
    kill_when(process, out / "ballots.jsonl", 3, signal.SIGKILL)
    process.wait()
    finish("judge", run_file)

    ballots = list(read_records(out / "ballots.jsonl", Ballot))
    assert len(ballots) == len({ballot.key for ballot in ballots})
    labels = {(b.prompt_id, b.first) for b in ballots if b.first.startswith("slot-")}
    assert len(labels) == 2 * (PROMPTS - 2)
    # Canaries: four in one order, three times four in two; all chosen answers are the same.
    assert len(ballots) == len(labels) + 4 + 2 * 12
    verdicts = list(read_records(out / "verdicts.jsonl", Verdict))
    assert {v.outcome for v in verdicts} == {"preferred"}
    manifest = json.loads((out / "manifest.json").read_text())
    audit = {share["name"]: share for share in manifest["audit"]}
    assert audit["swap_consistency"]["mean"] == 1.0 and not audit["swap_consistency"]["remedy"]
    assert audit["first_position"]["mean"] == 0.5
    assert audit["chosen_is_longer"]["mean"] == 1.0 and audit["chosen_is_longer"]["remedy"]
    assert [(row["kind"], row["passed"], row["status"]) for row in manifest["canaries"]] == [
        (kind, 4, "passed") for kind in ("identical", "empty", "padded", "injection")
    ]
    dropped = {"identical": 1, "candidate_cut_off": 1}
    assert manifest["counts"] == {"in": PROMPTS, "kept": PROMPTS - 2, "dropped": dropped}
    pairs = pyarrow.parquet.read_table(out / "preferences" / "pairs.parquet").to_pylist()
    assert len(pairs) == PROMPTS - 2
    for pair in pairs:
        n = int(pair["prompt_id"][1:])
        assert "GOOD" in texts[n] and pair["prompt"][-1]["content"].startswith(f"question {n} ")
        assert pair["chosen"] == [{"role": "assistant", "content": "GOOD"}]
        assert pair["rejected"] == [{"role": "assistant", "content": "bad"}]
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_a_complete_phase_is_skipped_and_other_settings_are_refused(
    run_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    write_candidates(run_file, monkeypatch)
    assert main(["sample", str(run_file)]) == 0
    assert "sample: already done" in capsys.readouterr().err
    assert main(["sample", str(run_file), "--set", "sample.max_new_tokens=7"]) == 2
    assert "config.sample.max_new_tokens: 120 -> 7" in capsys.readouterr().err


def test_three_slots_answer_every_prompt_and_make_three_comparisons(
    run_file: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """The tiny model never ends an answer, so that all of them are cut off."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    slots = "sample.slots=[{temperature: 0.5}, {temperature: 0.8}, {temperature: 1.1}]"
    more = ["--set", slots, "--set", "sample.max_new_tokens=3"]
    assert main(["sample", str(run_file), *more]) == 0
    out = tmp_path / "runs" / "test" / "sample"
    candidates = list(read_records(out / "candidates.jsonl", Candidate))
    expected = [(f"p{n}", slot) for n in range(PROMPTS) for slot in range(3)]
    assert [(c.prompt_id, c.slot) for c in candidates] == expected
    assert [c.settings["temperature"] for c in candidates[:3]] == [0.5, 0.8, 1.1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["counts"]["kept"], manifest["candidates"]) == (PROMPTS, 3 * PROMPTS)
    assert main(["judge", str(run_file), *more]) == 2
    said = f"the judge decided no pairs; dropped: {{'candidate_cut_off': {3 * PROMPTS}}}"
    assert said in capsys.readouterr().err


def test_training_refuses_a_reference_that_did_not_sample(
    run_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    from tests.tiny import make_model

    write_candidates(run_file, monkeypatch)
    retrained = make_model(tmp_path / "retrained", seed=1)
    arguments = ["train", str(run_file), "--set", f"model.sft={retrained}", "--set", "train={}"]
    arguments += ["--set", f"train.accelerate_config={ROOT}/accelerate_configs/cpu.yaml"]
    assert main(arguments) == 2
    assert "sampled from different weights" in capsys.readouterr().err


def test_training_waits_for_the_pairs(run_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["train", str(run_file), "--set", "train={}"]
    arguments += ["--set", f"train.accelerate_config={ROOT}/accelerate_configs/cpu.yaml"]
    assert main(arguments) == 2
    assert "sample is not complete: run the phase `sample` first" in capsys.readouterr().err
    write_candidates(run_file, monkeypatch)
    assert main(arguments) == 2
    assert "judge is not complete: run the phase `judge` first" in capsys.readouterr().err


def test_a_judge_scores_every_answer(
    run_file: Path, tmp_path: Path, monkeypatch, write_jsonl
) -> None:
    """From the run file to the table: the arm's mean score, on the scale of the rubric."""
    rows = [{"id": f"e{n}", "prompt": f"held-out question {n}"} for n in range(6)]
    write_jsonl(tmp_path / "held_out.jsonl", rows)
    values = yaml.safe_load(run_file.read_text())
    values["evaluate"] = {
        "prompts": {"path": "held_out.jsonl"},
        "arms": ["base"],
        "decodings": [{"temperature": 0.0}, {"temperature": 1.0}],
        "max_new_tokens": 8,
        "metrics": [{"type": "faithful_quotes", "field": "evidence"}],
        "judge_scores": [{"label": "Faithfulness (1-5)", "judge": values["judge"]["judge"]}],
    }
    run_file.write_text(yaml.safe_dump(values))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv(YES, "1")
    assert main(["evaluate", str(run_file)]) == 0
    out = tmp_path / "runs" / "test" / "evaluate"
    rows = json.loads((out / "scores.json").read_text())["metrics"]
    scored = [row for row in rows if row["unit"] == "points"]
    assert [(row["label"], row["decoding"]) for row in scored] == [("Faithfulness (1-5)", 0)]
    assert scored[0]["arms"]["base"] == {"n": 6, "mean": 2.0, "low": None, "high": None}
    (judged,) = json.loads((out / "manifest.json").read_text())["judge_scores"]
    assert judged["spend"]["usage"]["output_tokens"] == 60 and judged["missing"] == {}
