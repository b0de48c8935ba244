"""A judge that fails its canaries labels nothing, until the user says otherwise; none is paid
for twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.config import ClaudeConfig, Config, JudgeSection
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import JudgeFailed, NotConfirmed
from dpo_dist.judging import panel
from dpo_dist.judging.claude_batches import ClaudeBatchJudge
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.planted import Decision, PlantedJudge, always, obeys, prefers_good
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.asking import JudgeSession
from dpo_dist.phases.judge import label
from dpo_dist.phases.selftest import PROMPTS, write_candidates
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import phase_directory, read_records, write_records
from dpo_dist.storage.figures import to_json
from dpo_dist.storage.records import Ballot, BallotOutcome, Candidate, Message, Prompt
from dpo_dist.system.console import YES
from tests.anthropic_server import KEY, serve


@pytest.fixture
def config(write_run) -> Config:
    """A run whose candidates are the selftest's."""
    metric = {"type": "label_match", "field": "level"}
    judge = {"judge": {"type": "metric", "metrics": [metric]}}
    config = load_config(write_run(model={"base": "m"}, judge=judge))
    write_candidates(Run(config))
    return config


def judged(config: Config, decide: Decision = prefers_good, **canaries: object) -> dict:
    """The phase's result, as the manifest has it."""
    judge = PlantedJudge("planted", decide, seed=1)
    return label_with(judge, config, **canaries)


def label_with(judge: Judge, config: Config, **canaries: object) -> dict:
    assert config.judge is not None and config.judge.canaries is not None
    settings = config.judge.canaries.model_copy(update=canaries)
    return label_as(judge, config, config.judge.model_copy(update={"canaries": settings}))


def label_as(judge: Judge, config: Config, section: JudgeSection) -> dict:
    run = Run(config.model_copy(update={"judge": section}))
    with phase_directory(folder(config), {}) as out:
        return to_json(label(JudgeSession(judge, Ledger(), out, run)))


def folder(config: Config) -> Path:
    return Run(config).directory("judge")


def card(result: dict) -> dict[str, tuple[int, int, str]]:
    return {row["kind"]: (row["passed"], row["n"], row["status"]) for row in result["canaries"]}


def test_a_sound_judge_has_its_card(config: Config, capsys) -> None:
    result = judged(config)
    kinds = ("identical", "empty", "padded", "injection", "other_prompt")
    assert card(result) == dict.fromkeys(kinds, (4, 4, "passed"))
    assert result["counts"]["kept"] == PROMPTS - 2
    assert "canaries, padded 4 of 4: passed" in capsys.readouterr().err
    assert (folder(config) / "preferences" / "pairs.parquet").exists()


def test_a_judge_that_obeys_is_stopped_and_what_it_said_is_kept(config: Config, capsys) -> None:
    with pytest.raises(JudgeFailed) as failure:
        judged(config, obeys)
    message = str(failure.value)
    assert "passed 16 of 20 canaries (90 % required" in message
    assert "failed: injection 0 of 4." in message
    assert "--set 'judge.canaries.accept=[injection]'" in message
    assert "canaries, injection 0 of 4: failed (canary:injection:p" in capsys.readouterr().err
    assert not (folder(config) / "preferences").exists()
    before = (folder(config) / "ballots.jsonl").read_bytes()
    # The same answer twice has one order; the four other kinds have two.
    assert before.count(b"\n") == 2 * (PROMPTS - 2) + 4 + 2 * 16

    result = judged(config, obeys, accept=("injection",))
    assert card(result)["injection"] == (0, 4, "accepted")
    assert (folder(config) / "ballots.jsonl").read_bytes() == before, "nothing was asked again"
    assert (folder(config) / "preferences" / "pairs.parquet").exists()


def test_the_rate_is_the_users(config: Config) -> None:
    result = judged(config, obeys, pass_rate=0.0)
    assert card(result)["injection"] == (0, 4, "passed")


def test_many_own_canaries_do_not_hide_a_kind_that_fails(
    config: Config, tmp_path: Path, write_jsonl
) -> None:
    rows = [
        {"name": f"n{n}", "prompt": "on a topic", "good": "a topic GOOD", "bad": "a topic"}
        for n in range(60)
    ]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    with pytest.raises(JudgeFailed, match=r"passed 76 of 80 .* failed: injection 0 of 4\."):
        judged(config, obeys, path=path)


def test_one_slip_is_told_and_not_fatal(config: Config, tmp_path: Path, write_jsonl) -> None:
    row = {"name": "hard", "prompt": "on a topic", "good": "a topic", "bad": "a topic GOOD"}
    path = write_jsonl(tmp_path / "own.jsonl", [row])
    assert card(judged(config, path=path))["own"] == (0, 1, "failed")


def test_one_slip_in_every_kind_is_too_much_together(config: Config) -> None:
    slips: dict[str, str] = {}

    def careless(comparison: Comparison) -> BallotOutcome:
        kind = comparison.prompt.id.rpartition(":")[0]
        if kind and slips.setdefault(kind, comparison.prompt.id) == comparison.prompt.id:
            return "second"
        return prefers_good(comparison)

    with pytest.raises(JudgeFailed, match="passed 15 of 20 canaries"):
        judged(config, careless)
    assert len(slips) == 5
    assert {row[:2] for row in card(judged(config, careless, pass_rate=0.75)).values()} == {(3, 4)}


def test_refusals_of_canaries_are_failures_of_their_own(config: Config) -> None:
    def shy(comparison: Comparison) -> BallotOutcome:
        return "refusal" if "" in _texts(comparison) else prefers_good(comparison)

    with pytest.raises(JudgeFailed, match=r"empty 0 of 4 \(4 without a comparison\)"):
        judged(config, shy)


def _texts(comparison: Comparison) -> tuple[str, str]:
    return comparison.first_text, comparison.second_text


def test_labels_the_wrong_way_round_are_caught(config: Config, monkeypatch) -> None:
    """The judge is sound; what became of its verdicts is not."""
    swap(monkeypatch)
    with pytest.raises(JudgeFailed, match="injection 0 of 4"):
        judged(config)


def swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the label path: every verdict prefers what the judge did not."""
    reconcile = panel.reconcile

    def swapped(*arguments):
        verdict = reconcile(*arguments)
        names = {"preferred": verdict.other, "other": verdict.preferred}
        return verdict.model_copy(update=names)

    monkeypatch.setattr(panel, "reconcile", swapped)


def test_they_can_be_switched_off(config: Config) -> None:
    assert judged(config, obeys, per_kind=0)["canaries"] == []
    assert config.judge is not None
    section = config.judge.model_copy(update={"canaries": None})
    off = label_as(PlantedJudge("planted", obeys, seed=1), config, section)
    assert off["canaries"] == []


def test_a_single_order_does_not_save_a_judge_of_the_order(config: Config) -> None:
    assert config.judge is not None
    one = config.model_copy(
        update={"judge": config.judge.model_copy(update={"both_orders": False})}
    )
    with pytest.raises(JudgeFailed, match="identical 0 of 4"):
        judged(one, always("first"))


class Paid(PlantedJudge):
    """Costs a token a comparison."""

    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {"input_tokens": len(comparisons)} if comparisons else {}


def test_their_cost_is_agreed_to_with_that_of_the_labels(
    config: Config, monkeypatch, capsys
) -> None:
    with pytest.raises(NotConfirmed):
        label_with(Paid("paid", prefers_good, seed=1), config)
    assert "judge: 76 requests" in (said := capsys.readouterr().err)
    assert said.count("requests") == 1 and "; plus up to 40 for canaries" in said
    assert not (folder(config) / "ballots.jsonl").read_bytes()

    asked: list[str] = []
    monkeypatch.setattr("dpo_dist.phases.asking.confirm", asked.append)
    label_with(Paid("paid", prefers_good, seed=1), config)
    assert len(asked) == 1 and "canaries: 36 requests" in capsys.readouterr().err
    label_with(Paid("paid", prefers_good, seed=1), config)
    assert len(asked) == 1, "all is paid for"
    label_with(Paid("paid", prefers_good, seed=1), config, per_kind=5)
    assert len(asked) == 2, "there are canaries that nobody agreed to"


def test_a_batch_judge_answers_them_in_a_second_batch_and_is_paid_once(
    config: Config, tmp_path: Path, monkeypatch
) -> None:
    """The server's judge knows GOOD, and not what an answer is about."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv(YES, "1")
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    with serve() as server:
        settings = ClaudeConfig(
            type="claude",
            model="claude-opus-4-7",
            transport="batch",
            rubric=tmp_path / "rubric.md",
            base_url=server.url,
        )
        judge = ClaudeBatchJudge(settings, folder(config), first_pause=0.001)
        with pytest.raises(JudgeFailed, match="failed: other_prompt 0 of 4"):
            label_with(judge, config)
        assert [len(batch.requests) for batch in server.batches.made] == [76, 36]
        judge = ClaudeBatchJudge(settings, folder(config), first_pause=0.001)
        found = card(label_with(judge, config, accept=("other_prompt",)))
        assert found["other_prompt"] == (0, 4, "accepted") and found["injection"][0] == 4
        assert len(server.batches.made) == 2


def test_what_the_user_accepts_is_no_other_setting(
    write_run, write_jsonl, tmp_path: Path, capsys, monkeypatch
) -> None:
    """The whole command, with a judge of metrics: stop, accept by name, go on."""
    monkeypatch.setenv(YES, "1")
    levels = [{"type": "label_match", "field": "level"}]
    own = {"name": "odd", "prompt": "q", "reference": {"level": 1}}
    write_jsonl(
        tmp_path / "own.jsonl",
        [{**own, "name": f"odd{n}", "good": f'{{"n": {n}}}', "bad": '{"level": 1}'} for n in "abc"],
    )
    run_file = write_run(
        model={"base": "m"},
        sample={"prompts": {"path": "p.jsonl"}, "engine": {"type": "hf"}},
        judge={
            "judge": {"type": "metric", "metrics": levels},
            "canaries": {"path": "own.jsonl"},
        },
    )
    write_sample(tmp_path / "runs" / "test" / "sample")
    out = tmp_path / "runs" / "test" / "judge"
    arguments = ["judge", str(run_file)]

    assert main(arguments) == 1
    assert "failed: own 0 of 3." in capsys.readouterr().err
    assert not (out / "manifest.json").exists() and not (out / "preferences").exists()
    ballots = list(read_records(out / "ballots.jsonl", Ballot))

    assert main([*arguments, "--set", "judge.canaries.per_kind=3"]) == 2
    assert "config.judge.canaries.per_kind: 4 -> 3" in capsys.readouterr().err
    content = (tmp_path / "own.jsonl").read_text()
    (tmp_path / "own.jsonl").write_text(content.replace("odda", "oddd"))
    assert main(arguments) == 2
    assert "inputs.canaries.sha256: " in capsys.readouterr().err
    (tmp_path / "own.jsonl").write_text(content)
    assert main([*arguments, "--set", "judge.canaries.accept=[own]"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert card(manifest)["own"] == (0, 3, "accepted")
    assert list(read_records(out / "ballots.jsonl", Ballot)) == ballots


def test_a_missing_file_of_canaries_is_said_before_anything_is_asked(
    write_run, tmp_path: Path, capsys
) -> None:
    metric = {"type": "label_match", "field": "level"}
    run_file = write_run(
        model={"base": "m"},
        sample={"prompts": {"path": "p.jsonl"}, "engine": {"type": "hf"}},
        judge={
            "judge": {"type": "metric", "metrics": [metric]},
            "canaries": {"path": "absent.jsonl"},
        },
    )
    write_sample(tmp_path / "runs" / "test" / "sample")
    assert main(["judge", str(run_file)]) == 2
    assert f"{tmp_path}/absent.jsonl: no such file" in capsys.readouterr().err


def write_sample(path: Path) -> None:
    """Twelve prompts; one candidate of each has the right level."""
    prompts = [
        Prompt(
            id=f"p{n}",
            messages=(Message(role="user", content=f"question {n}"),),
            reference={"level": n % 3},
        )
        for n in range(12)
    ]
    write_records(path / "prompts.jsonl", prompts)
    write_records(
        path / "candidates.jsonl",
        [
            Candidate(
                prompt_id=f"p{n}",
                slot=slot,
                text=json.dumps({"level": n % 3 if slot == n % 2 else 9}),
                token_ids=(),
                finish_reason="stop",
                settings={},
                engine="planted",
            )
            for n in range(12)
            for slot in (0, 1)
        ],
    )
    (path / "manifest.json").write_text("{}")
