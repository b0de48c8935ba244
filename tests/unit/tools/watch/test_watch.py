"""`dpo-dist watch` on run directories in every state, made of the records that phases write."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.cli import main
from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.data.rows import write_parquet
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.records import Ballot, Candidate, Generation, Message, Prompt, Record
from dpo_dist.tools.watch.ballots import duration
from dpo_dist.tools.watch.progress import _EvaluateKeys
from dpo_dist.tools.watch.run import RateMeter, WatchedRun
from dpo_dist.tools.watch.screen import describe, watch
from tests.report_run import manifest

CLAUDE = "claude-opus-4-7"
HOSTILE = "\x1b[31mred\x1b[2J \u202eabc"


@pytest.fixture
def run_file(tmp_path: Path, write_run, write_jsonl) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "q"}])
    (tmp_path / "rubric.md").write_text("prefer the better one")
    judge = {"type": "claude", "model": CLAUDE, "rubric": "rubric.md"}
    return write_run(
        model={"base": "m"},
        sample={"prompts": {"path": "prompts.jsonl"}, "engine": {"type": "hf"}},
        judge={"judge": judge, "repeat": 0.5},
        train={"global_batch_size": 4, "micro_batch_size": 2, "num_epochs": 2},
        evaluate={
            "prompts": {"path": "eval.jsonl"},
            "decodings": [{"temperature": 0.0}, {"temperature": 1.0}],
            "metrics": [{"type": "label_match", "field": "severity"}],
            "judge": judge,
            "judge_scores": [{"judge": judge}],
        },
    )


@pytest.fixture
def config(run_file: Path) -> Config:
    return load_config(run_file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "test"


def begin(root: Path, config: Config, phase: str) -> Path:
    """A phase's directory as `phase_directory` makes it, with its lock."""
    out = root / phase
    write_json(out / "fingerprint.json", {"config": config.fixed_sections([phase])})
    (root / f".{phase}.lock").write_text("process 17 on node3")
    return out


def complete(root: Path, config: Config, phase: str, kept: int, **more: Any) -> None:
    out = begin(root, config, phase)
    counts = {"in": kept + 1, "kept": kept, "dropped": {"x": 1}}
    values = manifest(phase, config, counts=counts, wall_seconds=75.2, **more)
    write_json(out / "manifest.json", values)


def append(path: Path, records: list[Record], torn: int = 0) -> None:
    """As a journal does; of the last record `torn` bytes are not written yet."""
    content = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
    with path.open("ab") as file:
        file.write(content[: len(content) - torn])


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{n}", messages=(Message(role="user", content="q"),)) for n in range(count)]


def candidate(number: int, slot: int) -> Candidate:
    return Candidate(
        prompt_id=f"p{number}",
        slot=slot,
        text=HOSTILE,
        token_ids=(1, 2),
        finish_reason="length" if number == 0 else "stop",
        settings={"temperature": 0.7},
        engine="hf",
    )


def ballot(number: int, outcome: str, **more: Any) -> Ballot:
    usage = {"input_tokens": 100_000, "output_tokens": 1_000}
    values = {
        **{"key": f"k{number}", "prompt_id": f"p{number}", "first": "slot-0", "second": "slot-1"},
        **{"outcome": outcome, "judge": f"claude:{CLAUDE}:0123456789ab", "reasoning": HOSTILE},
        **{"usage": usage, **more},
    }
    return Ballot(**values)


def once(run: Path, capsys) -> str:
    assert main(["watch", str(run), "--once"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said
    return said


def age(folder: Path, seconds: float) -> None:
    """Nothing in or beside the folder has changed for so long."""
    then = time.time() - seconds
    for path in [*folder.iterdir(), *folder.parent.glob(f".{folder.name}.*")]:
        os.utime(path, (then, then))


def test_a_run_that_has_not_begun(run_file: Path, root: Path, tmp_path: Path, capsys) -> None:
    said = once(run_file, capsys)
    assert f"no phase has started: {root} does not exist yet\n" in said
    assert [line.split() for line in said.splitlines()[2:]] == [
        [phase, "-"] for phase in ("sample", "judge", "train", "evaluate", "report")
    ]
    assert not root.exists(), "nothing is written"
    root.mkdir(parents=True)
    assert f"no phase has started: {root} is empty\n" in once(root, capsys)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "is not a run's directory: it contains the YAML files run.yaml. Name a directory in"),
        ("runs", "is not a run's directory: it contains the runs test."),
        ("runs/test/sample", "it is the phase `sample` of the run {root}."),
        ("runs/test/sample/logs", "it is a part of the phase `sample` of the run {root}."),
        ("runs/tset", "runs/tset: no such file or directory; did you mean {root}?"),
        ("runz/x/y", "runz/x/y: no such file or directory"),
        ("run.yaml/x", "run.yaml is a file, not a directory"),
        ("data", "is not a run's directory: it contains neither phases nor YAML files."),
        ("runs/test/sample/fingerprint.json", "run: missing"),
    ],
)
@pytest.mark.parametrize("command", ["watch", "push"])
def test_a_wrong_place_is_said_to_be_what_it_is(
    root: Path, config: Config, tmp_path: Path, capsys, command: str, place: str, message: str
) -> None:
    (begin(root, config, "sample") / "logs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("")
    once = ["--once"] if command == "watch" else []
    assert main([command, str(tmp_path / place), *once]) == 2
    assert message.format(root=root) in capsys.readouterr().err


def test_sampling_in_shards(run_file: Path, root: Path, config: Config, capsys) -> None:
    out = begin(root, config, "sample")
    (root / ".sample.lock").write_text("2 shards")
    assert "running: 0 candidates\n" in once(root, capsys)
    write_records(out / "prompts.jsonl", prompts(10))
    first, second = (out / f"candidates-{n}-of-2.journal.jsonl" for n in range(2))
    append(first, [candidate(0, 0), candidate(0, 1), candidate(2, 0)])
    append(second, [candidate(1, 0), candidate(1, 1)], torn=9)
    os.utime(out / "fingerprint.json", (time.time() - 40,) * 2)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    said = once(run_file, capsys)
    assert "running: 4 of 20 candidates (20 %), 6 per minute on average, 3 min remaining" in said
    assert "50 % cut off, 2 journals" in said
    assert "by 2 shards" in said
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_what_nobody_works_at_is_said_to_be_so(root: Path, config: Config, capsys) -> None:
    out = begin(root, config, "sample")
    write_records(out / "prompts.jsonl", prompts(3))
    append(out / "candidates.journal.jsonl", [candidate(0, 0)])
    age(out, 12 * 60)
    said = once(root, capsys)
    assert "no sign of work for 12 min: 1 of 6 candidates (17 %)" in said
    assert "left" not in said and "average" not in said and "last by process 17 on node3" in said
    (root / ".sample.lock").write_text("process 18 on node4")  # a new process has begun
    assert "running: 1 of 6" in once(root, capsys)


def test_a_clock_that_is_ahead_does_not_keep_a_dead_run_alive(root: Path, config: Config) -> None:
    out = begin(root, config, "sample")
    now = time.time()
    age(out, -7200)  # two hours in the watcher's future
    run = WatchedRun(root)
    assert run.look(now)[0].state == "running"
    assert run.look(now + 299)[0].state == "running"
    (found,) = run.look(now + 301)
    assert (found.state, found.quiet_seconds) == ("quiet", pytest.approx(301))
    append(out / "candidates.journal.jsonl", [candidate(0, 0)])
    age(out, -7300)
    assert run.look(now + 302)[0].quiet_seconds == 0


def test_judging_tells_ballots_and_what_they_have_cost(root: Path, config: Config, capsys) -> None:
    complete(root, config, "sample", kept=8)
    out = begin(root, config, "judge")
    ballots = [ballot(0, "first"), ballot(1, "tie"), ballot(2, "refusal"), ballot(3, "second")]
    canary = ballot(9, "second", first="right", second="wrong", usage={})
    append(out / "ballots.jsonl", [canary, *ballots], torn=1)
    said = once(root, capsys)
    assert "sample    done in 1 min, 8 of 9 kept" in said
    assert "running: 3 of at most 20 ballots (15 %)" in said  # 8 x (2 orders + 0.5 repeats)
    # 5 USD a million to read, 25 to write: 3 x (0.5 + 0.025)
    assert "1 on canaries, 1 refusal, 1 tie, $1.58 so far (prices of " in said
    assert [line.split()[:2] for line in said.splitlines()[-3:]] == [
        [phase, "-"] for phase in ("train", "evaluate", "report")
    ]


def test_ballots_whose_price_is_unknown_have_no_price(root: Path, config: Config, capsys) -> None:
    complete(root, config, "sample", kept=8)
    out = begin(root, config, "judge")
    append(out / "ballots.jsonl", [ballot(0, "first", judge="claude:claude-next:0123456789ab")])
    assert "101000 tokens, cost unknown" in once(root, capsys)
    (out / "ballots.jsonl").unlink()
    own = "openai_compatible:m:0123456789ab"
    append(out / "ballots.jsonl", [ballot(n, "first", judge=own) for n in range(2)])
    assert "202000 tokens, cost unknown" in once(root, capsys)


def test_batches_that_are_out_are_told(root: Path, config: Config, capsys) -> None:
    complete(root, config, "sample", kept=8)
    batches = begin(root, config, "judge") / "batches"
    sent = {"batch_id": "b", "strangers": [], "sent_at": time.time() - 7500}
    write_json(batches / "0001.json", {**sent, "keys": ["a", "b"]})
    write_json(batches / "0002.json", {**sent, "keys": ["c"], "sent_at": time.time()})
    assert "requests in batches: 3, the first sent 2 h 05 min ago" in once(root, capsys)
    (batches / "0001.results.jsonl").write_text("")
    assert "requests in batches: 1, the first sent 0 s ago" in once(root, capsys)


def test_training_with_metrics_and_alarms(root: Path, config: Config, capsys) -> None:
    out = begin(root, config, "train")
    assert "running: 0 steps" in once(root, capsys)
    settings = {"global_batch_size": 4, "num_epochs": 2.0}
    write_json(out / "job.json", {"settings": settings})
    write_parquet(out / "tokens" / "train.parquet", [{"tokens": n} for n in range(9)])
    lines = [
        {"step": 0, "eval_loss": 0.6931, "eval_rewards/margins": 0.0},
        {"step": 1, "loss": 0.6931, "rewards/margins": 0.0, "learning_rate": 2e-4},
        {"step": 2, "loss": 0.6, "rewards/margins": 0.25, "rewards/accuracies": 0.75},
        {"step": 2, "kl/per_token": 0.0435, "kl/per_token_se": 0.0066},
        *({"step": 2, "alarm": f"kind{n}", "message": f"{n} {HOSTILE}"} for n in range(4)),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "metrics.jsonl").write_text(text + 'no JSON\n{"step": 3, "lo')
    said = once(root, capsys)
    assert "2 of 6 steps (33 %)" in said  # two epochs of 9 rows, 4 a step
    assert "loss 0.6, margin 0.25, accuracy 0.75, KL 0.0435 ± 0.013 (95 %), lr 0.0002" in said
    assert "validation loss 0.6931, margin 0\n" in said
    assert [line.split()[3] for line in said.splitlines() if "! step 2:" in line] == list("123")
    assert "␛[31mred" in said


def test_a_resumed_training_goes_back_to_its_checkpoint(root: Path, config: Config) -> None:
    out = begin(root, config, "train")
    write = (out / "metrics.jsonl").write_text
    write("".join(f'{{"step": {n}, "loss": 0.{n}}}\n' for n in range(1, 7)))
    run = WatchedRun(root)
    assert run.look()[0].progress.figures == ("loss 0.6",)
    (out / "metrics.jsonl").rename(out / "before")
    write("".join(f'{{"step": {n}, "loss": 0.{n}}}\n' for n in range(1, 4)))
    progress = run.look()[0].progress
    assert (progress.done, progress.figures) == (3, ("loss 0.3",))


def test_an_evaluation_answers_and_is_then_judged(root: Path, config: Config, capsys) -> None:
    complete(root, config, "train", kept=3)
    out = begin(root, config, "evaluate")
    write_records(out / "prompts.jsonl", prompts(2))
    answers = [
        Generation(
            **{"prompt_id": f"p{n}", "arm": arm, "decoding": decoding, "text": HOSTILE},
            **{"token_ids": (1,), "finish_reason": "stop", "engine": "hf"},
        )
        for arm in ("base", "sft", "dpo")
        for decoding in (0, 1)
        for n in range(2)
    ]
    append(out / "generations.journal.jsonl", answers[:-1])
    assert "11 of 12 answers (92 %)" in once(root, capsys)
    append(out / "generations.journal.jsonl", answers[-1:])
    assert "12 of 12 answers (100 %)" in once(root, capsys)
    append(out / "ballots.jsonl", [ballot(0, "4", second="")])
    assert "1 of at most 18 ballots (6 %)" in once(root, capsys)  # 2 x (3 x 2 orders + 3 scores)


@pytest.mark.parametrize(("pairwise", "pairs"), [("all", 3), ("headline", 1)])
def test_arms_that_are_sections_are_counted_by_name(pairwise: str, pairs: int) -> None:
    keys = _EvaluateKeys(
        arms=("sft", {"name": "dpo", "system": "s"}, {"name": "rival", "model": "m"}),
        pairwise=pairwise,
        judge={"type": "human", "sheet": "sheet.csv"},
    )
    assert keys.compared_pairs == pairs


def test_a_complete_run_ends_the_watch(root: Path, config: Config, capsys) -> None:
    for phase in ("sample", "judge", "train", "evaluate", "report"):
        spend = {"usd": 1.5, "usage": {}} if phase == "judge" else None
        complete(root, config, phase, kept=8, spend=spend)
    assert main(["watch", str(root)]) == 0
    said = capsys.readouterr().out
    assert "judge     done in 1 min, 8 of 9 kept, $1.50" in said
    assert said.splitlines()[-1].split() == ["report", "done", "in", "1", "min"]
    assert said.count("done in") == 5


def test_rounds_are_shown_as_they_come(root: Path, config: Config) -> None:
    for name in ("round-2", "round-10"):
        begin(root / name, config, "sample")
    names = [step.name for step in WatchedRun(root, config).look()]
    assert names[0] == "round-2/sample" and names[4] == "round-10/sample"
    assert names[-1] == "report" and len(names) == 9


def test_the_screen_is_redrawn_in_place(root: Path, config: Config, monkeypatch) -> None:
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    begin(root, config, "sample")
    looks = iter([None, KeyboardInterrupt])

    def sleep(_: float) -> None:
        if error := next(looks):
            raise error

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "40")
    terminal = Terminal()
    watch(WatchedRun(root), screen=terminal)
    first, second = terminal.text.split("\x1b[J")[1:]
    lines = first.removesuffix("\x1b[3F").splitlines()
    assert len(lines) == 3 and all(len(line) < 30 for line in lines)
    assert first.endswith("\x1b[3F") and second.splitlines()[1:] == lines[1:]


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = RateMeter()
    pace.add(0, 100)
    assert pace.rate(0) is None
    pace.add(0.1, 101)
    assert pace.rate(0.2) is None, "ten a second, or chance"
    for second in range(1, 121):
        pace.add(second, 100 + (second if second <= 60 else 60 + 3 * (second - 60)))
    assert pace.rate(120) == pytest.approx(3, rel=0.05)
    pace.add(121, 5)  # a resumed training has gone back
    assert pace.rate(121) is None


def test_the_pace_of_steps_that_take_minutes() -> None:
    pace = RateMeter()
    for step in range(5):
        pace.add(90.0 * step, step)
    assert pace.rate(360) == pytest.approx(1 / 90)
    assert pace.rate(450) == pytest.approx(1 / 180), "it falls while nothing comes"


def test_durations() -> None:
    found = [duration(seconds) for seconds in (0.4, 59, 61, 3900, 100_000)]
    assert found == ["0 s", "59 s", "1 min", "1 h 05 min", "1 d 3 h"]


def test_a_step_that_is_unknown_has_no_end(root: Path, config: Config) -> None:
    begin(root, config, "report")
    run = WatchedRun(root)
    lines = describe(run, run.look())
    assert lines[1].split() == ["report", "running:", "no", "figures"]
