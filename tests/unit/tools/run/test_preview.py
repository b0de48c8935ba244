"""`--dry-run`: what would be done, from what, and at what cost, without doing any of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.config.runfile import load_config
from dpo_dist.data.preferences import write_pairs
from dpo_dist.phases.pipeline import _fingerprint
from dpo_dist.phases.registry import PHASES
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json
from dpo_dist.storage.records import Message, PreferencePair


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Path:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"question {n}"} for n in range(6)])
    write_jsonl(tmp_path / "e.jsonl", [{"prompt": f"held out {n}"} for n in range(4)])
    (tmp_path / "rubric.md").write_text("Prefer the better one.")
    claude = {"type": "claude", "rubric": "rubric.md", "max_usd": 3}
    return write_run(
        model={"base": str(tiny_model)},
        sample={"prompts": {"path": "p.jsonl"}, "engine": {"type": "hf"}},
        judge={"judge": {**claude, "model": "claude-opus-4-7"}, "canaries": None},
        train={},
        evaluate={
            "prompts": {"path": "e.jsonl"},
            "metrics": [{"type": "length"}],
            "judge": {**claude, "model": "unknown", "max_usd": None},
        },
    )


def finish(run_file: Path, phase: str) -> None:
    """A directory as that of a complete phase."""
    run = Run(load_config(run_file))
    folder = run.directory(phase)
    write_json(folder / "fingerprint.json", _fingerprint(PHASES[phase], run))
    write_json(folder / "manifest.json", {})


def test_a_new_run_starts_everything(run_file: Path, tmp_path: Path, tiny_model, capsys) -> None:
    assert main(["run", str(run_file), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    root = tmp_path / "runs" / "test"
    assert lines[0] == f"test: {root}"
    phases = [line for line in lines[1:] if not line.startswith(" ") and line.endswith(": start")]
    assert phases == [f"{p}: start" for p in ("sample", "judge", "train", "evaluate", "report")]
    assert f"    from {tmp_path / 'p.jsonl'} and {tiny_model}" in lines
    assert "    engine hf: 6 prompts, one answer per slot: 12 answers" in lines
    assert f"    from {root / 'judge' / 'preferences' / 'pairs.parquet'} and {tiny_model}" in lines
    [labels] = [line for line in lines if line.startswith("judge: at most")]
    assert "12 requests to claude-opus-4-7: about $" in labels and "limit max_usd 3" in labels
    assert "evaluate: at most 24 requests to unknown: the price is unknown" in lines
    assert lines[-2].endswith("and what has no known price")
    assert lines[-1] == "dry run: nothing was started"
    assert not (tmp_path / "runs").exists()


def test_what_is_done_is_skipped_and_costs_nothing(run_file: Path, tmp_path: Path, capsys) -> None:
    finish(run_file, "sample")
    root = tmp_path / "runs" / "test"
    (root / "sample" / "candidates.jsonl").write_text("")
    finish(run_file, "judge")
    message = Message(role="user", content="q")
    pair = PreferencePair(prompt_id="1", prompt=(message,), chosen="a", rejected="b")
    write_pairs(root / "judge" / "preferences" / "pairs.parquet", [pair])
    assert main(["run", str(run_file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "sample: done\njudge: done\n" in printed
    assert "judge: at most" not in printed

    (root / "sample" / "manifest.json").unlink()
    assert main(["run", str(run_file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "sample: continue\n" in printed
    assert "judge: done; starts over or is refused if its inputs change\n" in printed


def test_changed_settings_are_refused_as_by_the_run(run_file: Path, capsys) -> None:
    finish(run_file, "sample")
    change = ["--set", "sample.max_new_tokens=8", "--dry-run"]
    assert main(["sample", str(run_file), *change]) == 2
    assert "sample.max_new_tokens: 160 -> 8" in capsys.readouterr().err
    assert main(["sample", str(run_file), *change, "--force"]) == 0
    assert "sample: start over" in capsys.readouterr().out


def test_a_phase_alone_needs_its_inputs(run_file: Path, tmp_path: Path, capsys) -> None:
    assert main(["judge", str(run_file), "--dry-run"]) == 2
    assert "run the phase `sample` first" in capsys.readouterr().err
    (tmp_path / "p.jsonl").unlink()
    assert main(["run", str(run_file), "--dry-run"]) == 2
    assert "p.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
