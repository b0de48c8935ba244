"""Batches: paid for once, whatever is lost on the way, and read right in any order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError, JudgeFailed
from dpo_dist.judging import claude_batches
from dpo_dist.judging.batch_service import BatchRecord, read_batches
from dpo_dist.judging.claude_batches import ClaudeBatchJudge
from dpo_dist.judging.panel import Judged, judge_all
from dpo_dist.judging.spend import Ledger, open_ledger
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Ballot
from tests.anthropic_server import KEY, Fault, Server, serve
from tests.contracts.test_judges import asked, comparison
from tests.unit.judging.test_panel import comparisons

A_REQUEST = (100 * 5 + 10 * 25) / 1e6 / 2  # the server's usage at the batch price, USD


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with serve() as server:
        yield server


@pytest.fixture
def config(server: Server, tmp_path: Path) -> ClaudeConfig:
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    return ClaudeConfig(
        type="claude",
        model="claude-opus-4-7",
        transport="batch",
        rubric=tmp_path / "rubric.md",
        base_url=server.url,
        max_attempts=3,
    )


def build(config: ClaudeConfig, folder: Path) -> ClaudeBatchJudge:
    return ClaudeBatchJudge(config, folder, first_pause=0.001, backoff_base=0.001)


def poll(config: ClaudeConfig, folder: Path, ledger: Ledger | None = None) -> Judged:
    """Forty comparisons, eighty requests."""
    with Journal(folder / "ballots.jsonl", Ballot) as journal:
        return judge_all(
            build(config, folder),
            comparisons(),
            journal,
            ledger=ledger or open_ledger(config),
            both_orders=True,
            seed=0,
        )


def check(judged: Judged) -> None:
    for item, verdict in zip(comparisons(), judged.verdicts, strict=True):
        assert verdict.preferred == ("slot-0" if item.first_text == "GOOD" else "slot-1")


def sizes(server: Server) -> list[int]:
    return [len(batch.requests) for batch in server.batches.made]


def test_shuffled_results_label_every_pair_right_at_half_the_price(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    ledger = open_ledger(config)
    check(poll(config, tmp_path, ledger))
    assert sizes(server) == [80]
    assert ledger.usd == pytest.approx(80 * A_REQUEST)
    check(poll(config, tmp_path))
    assert sizes(server) == [80] and server.batches.downloads == 1


def test_a_body_that_would_be_too_large_is_split(
    server: Server, config: ClaudeConfig, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(claude_batches, "BODY_BYTES", 30_000)
    check(poll(config, tmp_path))
    assert sum(sizes(server)) == 80 and max(sizes(server)) < 40


def test_a_batch_that_was_created_unseen_is_adopted(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batch_faults += [Fault(status=0, after=True)]
    check(poll(config, tmp_path))
    assert sizes(server) == [80], "a second one would be paid for twice"


def test_a_failed_creation_is_tried_again(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batch_faults += [Fault(status=529)]
    check(poll(config, tmp_path))
    assert sizes(server) == [80]


def requests(server: Server, config: ClaudeConfig, folder: Path) -> tuple[list[str], list[Any]]:
    """The requests that `poll` sends, without their having been sent."""
    poll(config, folder / "elsewhere")
    made = server.batches.made.pop().requests
    server.batches.items = 0
    return [request["custom_id"] for request in made], made


@pytest.mark.parametrize("ended", [True, False])
def test_a_batch_orphaned_by_a_crash_is_adopted(
    server: Server, config: ClaudeConfig, tmp_path: Path, ended: bool
) -> None:
    keys, sent = requests(server, config, tmp_path)
    BatchRecord.intend(tmp_path / "batches", keys)
    server.batches.add(sent).polls = 0 if ended else 3
    check(poll(config, tmp_path))
    assert sizes(server) == [80]


def test_an_intent_that_was_never_sent_is_sent_once(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    keys, _ = requests(server, config, tmp_path)
    BatchRecord.intend(tmp_path / "batches", keys)
    check(poll(config, tmp_path))
    assert sizes(server) == [80] and len(read_batches(tmp_path / "batches")) == 1


def test_anothers_batch_of_the_same_size_is_given_back(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    keys, sent = requests(server, config, tmp_path)
    BatchRecord.intend(tmp_path / "batches", keys)
    server.batches.add(sent).polls = 1
    server.batches.add(sent, foreign=True).polls = 1
    check(poll(config, tmp_path))
    assert sizes(server) == [80, 80], "ours was found behind it"
    (batch,) = read_batches(tmp_path / "batches")
    assert (batch.batch_id, batch.strangers) == ("msgbatch_0", ["msgbatch_1"])


@pytest.mark.parametrize("fate", ["errored", "expired", "canceled", "lost", "garbled"])
def test_only_what_failed_is_sent_again(
    server: Server, config: ClaudeConfig, tmp_path: Path, fate: str, capsys
) -> None:
    server.batches.fates = {0: fate, 7: fate, 79: fate, 80: fate}
    check(poll(config, tmp_path))
    assert sizes(server) == [80, 3, 1]
    name = {"lost": "3 missing", "garbled": "3 missing, 3 unreadable"}.get(fate, f"3 {fate}")
    said = capsys.readouterr().err
    assert f"batch msgbatch_0: {name} of 80 results" in said


def test_what_fails_too_often_is_not_answered_and_asked_by_the_next_command(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batches.fates = dict.fromkeys((5, 80, 81), "expired") | {6: "invalid"}
    judged = poll(config, tmp_path)
    assert sizes(server) == [80, 1, 1], "an invalid request is not sent again"
    outcomes = Counter(verdict.outcome for verdict in judged.verdicts)
    assert set(outcomes) == {"preferred", "not_answered"} and outcomes["not_answered"] in (1, 2)
    check(poll(config, tmp_path))
    assert sizes(server) == [80, 1, 1, 2]


def test_a_result_that_comes_twice_counts_once(
    server: Server, config: ClaudeConfig, tmp_path: Path, capsys
) -> None:
    server.batches.fates = {3: "twice", 4: "twice"}
    ledger = open_ledger(config)
    check(poll(config, tmp_path, ledger))
    assert ledger.usd == pytest.approx(80 * A_REQUEST)
    assert "2 unknown or duplicate of 80 results" in capsys.readouterr().err


def test_every_way_to_answer_has_its_outcome(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    """A malformed verdict is repaired and a cut-off one is given room, in a second batch."""
    server.batches.fates = {
        0: Fault(text="not JSON"),
        1: Fault(stop_reason="max_tokens"),
        2: Fault(stop_reason="refusal", category="frontier_llm"),
        3: "too_long",
        4: Fault(stop_reason="model_context_window_exceeded"),
        5: Fault(text="{}"),
        8: Fault(text="not JSON"),  # the last of the second batch
    }
    judge = build(config, tmp_path)
    ballots = asked(judge, [comparison(n, "GOOD", "bad") for n in range(6)])
    first, second = server.batches.made
    assert (len(first.requests), len(second.requests)) == (6, 3)
    found = {ballot.prompt_id: ballot for ballot in ballots}
    assert [found[f"p{n}"].outcome for n in range(6)] == [
        "first",
        "first",
        "refusal",
        "exceeds_context",
        "exceeds_context",
        "unparsed",
    ]
    assert found["p2"].category == "frontier_llm"
    turns = {len(request["params"]["messages"]) for request in second.requests}
    rooms = [request["params"]["max_tokens"] for request in second.requests]
    assert turns == {1, 3} and sorted(rooms) == [4096, 4096, 8192]
    assert found["p5"].usage["attempts"] == 2 and found["p5"].usage["output_tokens"] == 20


def test_a_kill_between_two_batches_repeats_nothing(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    """The first batch is read, but the process ends while the repair is under way."""
    server.batches.fates = {0: Fault(text="not JSON")}
    stream = build(config, tmp_path).compare([comparison(n, "GOOD", "bad") for n in range(4)])
    assert len(next(stream)) == 3
    server.batch_faults += [Fault(status=401)]
    with pytest.raises(JudgeFailed, match="credentials"):
        list(stream)
    ballots = asked(build(config, tmp_path), [comparison(n, "GOOD", "bad") for n in range(4)])
    assert sizes(server) == [4, 1] and len(ballots) == 4
    assert {ballot.outcome for ballot in ballots} == {"first"}
    assert sum(ballot.usage["attempts"] for ballot in ballots) == 5


def test_a_torn_stream_is_fetched_again(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batches.torn = 2
    check(poll(config, tmp_path))
    assert server.batches.downloads == 3 and sizes(server) == [80]


def test_a_batch_outlives_the_time_that_was_given(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batches.polls = 5
    with pytest.raises(JudgeFailed, match=r"max_hours .* has elapsed"):
        poll(config.model_copy(update={"max_hours": 1e-9}), tmp_path)
    check(poll(config, tmp_path))
    assert sizes(server) == [80]


def test_archived_results_are_explained(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batches.archived = True
    with pytest.raises(JudgeFailed, match=r"no longer exist .*delete .*0001\.json"):
        poll(config, tmp_path)
    (tmp_path / "batches" / "0001.json").unlink()
    server.batches.archived = False
    check(poll(config, tmp_path))
    assert sizes(server) == [80, 80]


def test_the_key_is_sent_to_no_other_host(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    server.batches.results_host = "http://localhost:9"
    with pytest.raises(JudgeFailed, match=r"reported to be on localhost, not on 127\.0\.0\.1"):
        poll(config, tmp_path)
    assert server.batches.downloads == 0


def test_a_limit_is_kept_by_the_forecast(
    server: Server, config: ClaudeConfig, tmp_path: Path
) -> None:
    poor = config.model_copy(update={"max_usd": 0.2})
    with pytest.raises(JudgeFailed, match=r"max_usd 0\.2 would be exceeded"):
        poll(poor, tmp_path)
    first = sum(sizes(server))
    assert 0 < first < 80, "as many as the forecast pays for"
    check(poll(config, tmp_path))
    assert sizes(server) == [first, 80 - first]


def capabilities(**supported: bool) -> dict[str, Any]:
    names = ("batch", "citations", "code_execution", "image_input", "pdf_input")
    found = {name: {"supported": True} for name in (*names, "structured_outputs")}
    return found | {name: {"supported": value} for name, value in supported.items()}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({}, None),
        ({"lifecycle": "retired"}, "is retired"),
        (
            {"capabilities": capabilities(structured_outputs=False)},
            "does not support structured outputs",
        ),
        ({"capabilities": capabilities(batch=False)}, "use `transport: online`"),
    ],
)
def test_what_the_model_cannot_do_is_said_before_anything_is_sent(
    server: Server, config: ClaudeConfig, tmp_path: Path, model: dict[str, Any], problem: str | None
) -> None:
    judge = build(config, tmp_path)
    judge.check()  # an endpoint without models is no obstacle
    known = {"id": config.model, "type": "model", "lifecycle": "active", "max_input_tokens": 100}
    server.models = {config.model: known | {"capabilities": capabilities()} | model}
    if problem is None:
        judge.check()
        long, short = comparison(0, "GOOD " * 500, "bad"), comparison(0, "GOOD", "bad")
        assert judge.why_not_asked(long) == "exceeds_context"
        assert judge.why_not_asked(short) is None
    else:
        with pytest.raises(ConfigError, match=problem):
            judge.check()
    server.models = {}
    with pytest.raises(ConfigError, match="does not know the model"):
        judge.check()


def test_the_raw_results_are_kept(server: Server, config: ClaudeConfig, tmp_path: Path) -> None:
    poll(config, tmp_path)
    lines = (tmp_path / "batches" / "0001.results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["custom_id"] for line in lines}) == 80
