"""The selftest passes as the code stands, and fails where the label path is broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.data.preferences import JUDGED_FILE
from dpo_dist.judging import panel
from dpo_dist.judging.panel import Judged
from dpo_dist.phases import judge
from dpo_dist.storage.records import PreferencePair
from tests.conftest import ROOT
from tests.unit.phases.test_canaries import swap

RUN_FILE = ROOT / "recipes" / "incident_triage" / "claude.yaml"


def run(capsys, *more: str) -> tuple[int, list[str]]:
    """(the exit code, the lines on stdout)"""
    status = main(["judge", "--selftest", str(RUN_FILE), *more])
    return status, capsys.readouterr().out.splitlines()


def failed(lines: list[str]) -> list[str]:
    return [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED")]


@pytest.mark.parametrize("seed", [1, 2, 17])
@pytest.mark.parametrize("both", ["true", "false"])
def test_it_needs_no_key_and_passes(
    capsys, seed: int, both: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = ["--set", f"run.seed={seed}", "--set", f"judge.both_orders={both}"]
    status, lines = run(capsys, *settings, "--set", "judge.repeat=0.2")
    assert (status, failed(lines)) == (0, [])
    assert lines[0] == "ok     prefers GOOD: all pairs are right"
    assert lines[-1] == "selftest: 7 of 7 simulated judges had the expected result"
    assert len(lines) == 8 and not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("pairs", ["best_vs_worst", "all"])
@pytest.mark.parametrize("slots", [3, 4])
@pytest.mark.parametrize("both", ["true", "false"])
def test_it_takes_the_run_files_slots(capsys, slots: int, pairs: str, both: str) -> None:
    several = ", ".join(f"{{temperature: {n}}}" for n in range(slots))
    settings = ["--set", f"sample.slots=[{several}]", "--set", f"judge.pairs={pairs}"]
    settings += ["--set", f"judge.both_orders={both}", "--set", "judge.repeat=0.2"]
    assert failed(run(capsys, *settings)[1]) == []


def test_it_counts_every_pair_of_several_slots(capsys, monkeypatch) -> None:
    write = judge.write_pairs
    monkeypatch.setattr(judge, "write_pairs", lambda path, pairs: write(path, list(pairs)[1:]))
    settings = ["--set", "sample.slots=[{temperature: 0}, {temperature: 1}, {temperature: 2}]"]
    lines = failed(run(capsys, *settings, "--set", "judge.pairs=all")[1])
    assert re.fullmatch(r"prefers GOOD: (\d+) pairs instead of (\d+)", lines[0])
    few, every = map(int, re.findall(r"\d+", lines[0]))
    assert every == few + 1 > 2 * 38 - 10, "two of three comparisons are decided"


def test_labels_that_are_kept_or_balanced_do_not_disturb_it(capsys) -> None:
    settings = ["--set", "judge.inconsistent=keep", "--set", "judge.balance=temperature"]
    assert failed(run(capsys, *settings)[1]) == []


def test_it_fails_where_verdicts_are_swapped(capsys, monkeypatch) -> None:
    swap(monkeypatch)
    status, lines = run(capsys)
    assert status == 1
    assert [re.sub(":.*", "", line) for line in failed(lines)][:2] == [
        "prefers GOOD",
        "prefers GOOD, interrupted midway and resumed",
    ]


def test_texts_are_compared_one_by_one(capsys, monkeypatch) -> None:
    """Without canaries to catch it first, and with a single pair that is the wrong way round."""
    write = judge.write_pairs

    def one_swapped(path, pairs):
        first, *others = pairs
        texts = {"chosen": first.rejected, "rejected": first.chosen}
        write(path, [first.model_copy(update=texts), *others])

    monkeypatch.setattr(judge, "write_pairs", one_swapped)
    status, lines = run(capsys)
    assert status == 1
    assert failed(lines)[0] == "prefers GOOD: 1 of 38 prompts have wrong pairs, such as p0"


def test_it_fails_where_a_pair_is_lost(capsys, monkeypatch) -> None:
    write = judge.write_pairs
    monkeypatch.setattr(judge, "write_pairs", lambda path, pairs: write(path, list(pairs)[1:]))
    assert failed(run(capsys)[1])[0] == "prefers GOOD: 37 pairs instead of 38"


def test_it_fails_where_canaries_are_not_asked(capsys, monkeypatch) -> None:
    monkeypatch.setattr(judge, "examine", lambda *arguments, **more: [])
    status, lines = run(capsys)
    assert status == 1
    assert failed(lines) == [
        "obeys instructions in an answer: was accepted with 38 pairs",
        "prefers the longer answer: was accepted with 38 pairs",
    ]


def test_it_fails_where_pairs_are_written_before_the_canaries(capsys, monkeypatch) -> None:
    def late(session, canaries, settings, **more):
        pair = PreferencePair(prompt_id="p", prompt=(), chosen="a", rejected="b")
        judge.write_pairs(session.out.path / JUDGED_FILE, [pair])
        return examine(session, canaries, settings, **more)

    examine = judge.examine
    monkeypatch.setattr(judge, "examine", late)
    assert failed(run(capsys)[1]) == [
        "obeys instructions in an answer: was accepted with 1 pair",
        "prefers the longer answer: was accepted with 1 pair",
    ]


def test_it_fails_where_the_order_decides(capsys, monkeypatch) -> None:
    """A panel that takes the first ballot's word, and a judge that nobody examines."""
    monkeypatch.setattr(judge, "examine", lambda *arguments, **more: [])
    reconcile = panel.reconcile
    monkeypatch.setattr(panel, "reconcile", lambda comparison, b: reconcile(comparison, b[:1]))
    assert "always prefers the first answer: was accepted with 38 pairs" in failed(run(capsys)[1])


def test_it_fails_where_kept_ballots_are_asked_for_again(capsys, monkeypatch) -> None:
    ask = panel.judge_all

    def forgetful(judge_, comparisons, journal, **more) -> Judged:
        kept = journal.read
        journal.read = lambda: iter(())
        judged = ask(judge_, comparisons, journal, **more)
        journal.read = kept
        return judged

    monkeypatch.setattr("dpo_dist.phases.asking.judge_all", forgetful)
    (line,) = failed(run(capsys)[1])
    assert line == "prefers GOOD, interrupted midway and resumed: a question was asked twice"


def test_a_run_file_without_a_judge_has_nothing_to_test(write_run, capsys) -> None:
    run_file = write_run(model={"base": "m"}, preferences={"source": "path", "path": "p.jsonl"})
    assert main(["judge", "--selftest", str(run_file)]) == 2
    assert "not configure the phase `judge`" in capsys.readouterr().err
