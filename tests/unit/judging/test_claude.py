"""Every fault of the API and its promised end."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError, JudgeFailed
from dpo_dist.judging.claude import ClaudeJudge
from dpo_dist.storage.records import Ballot
from tests.anthropic_server import KEY, Fault, Server
from tests.contracts.test_judges import asked, comparison


def ask(server: Server, rubric: Path, count: int = 1, attempts: int = 4) -> list[Ballot]:
    config = ClaudeConfig(
        type="claude", model="m", rubric=rubric, base_url=server.url, max_attempts=attempts
    )
    judge = ClaudeJudge(config, backoff_base=0.001, timeout=1.5)
    return asked(judge, [comparison(n, "GOOD", "bad") for n in range(count)])


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429),
        Fault(status=429, headers={"retry-after": "0.01"}),
        Fault(status=429, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Fault(status=500),
        Fault(status=503),
        Fault(status=529),
        Fault(status=0),
        Fault(body=b"<html>busy</html>"),
        Fault(body=b"<html>busy</html>", headers={"content-type": "text/html"}),
        Fault(body=b'{"id": "msg_1", "content'),
        Fault(body=b"{}"),
        Fault(torn=True),
        Fault(delay=3.0),
    ],
    ids=lambda fault: (
        f"{fault.status}{fault.headers}{(fault.body or b'')[:6]}{fault.torn}{fault.delay}"
    ),
)
def test_a_passing_fault_is_survived(server: Server, rubric: Path, fault: Fault) -> None:
    server.faults += [fault, fault]
    (ballot,) = ask(server, rubric)
    assert ballot.outcome == "first"
    assert len(server.requests) == 3
    assert ballot.usage["attempts"] == 3
    assert ballot.usage["attempts_with_unknown_usage"] == 2
    assert ballot.usage["input_tokens"] == 100
    assert ballot.answered_by == "m" and ballot.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (Fault(status=500), "failed 3 times in a row", 3),
        (Fault(status=429, headers={"retry-after": "99999"}), "retry only after 99999 s", 1),
        (Fault(status=401), "refused the credentials", 1),
        (Fault(status=403), "refused the credentials", 1),
        (Fault(status=400), "refused the request", 1),
        (Fault(status=429, error_code="enforced_spend_limit_reached"), "spend limit", 1),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
def test_a_lasting_fault_stops_with_its_reason(
    server: Server, rubric: Path, fault: Fault, message: str, requests: int
) -> None:
    server.faults += [fault] * 9
    with pytest.raises(JudgeFailed, match=message) as caught:
        ask(server, rubric, attempts=3)
    assert len(server.requests) == requests
    assert KEY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        '```json\n{"reasoning": "r", "verdict": "first"}\n```',
        '{"reasoning": "r", "verdict": "first", "score": 9}',
        '{"reasoning": "r", "verdict": "third"}',
        '{"verdict": "first"}',
        "",
    ],
)
def test_a_malformed_verdict_is_repaired_once_and_never_guessed(
    server: Server, rubric: Path, text: str
) -> None:
    server.faults += [Fault(text=text)]
    (ballot,) = ask(server, rubric)
    assert ballot.outcome == "first"
    assert [turn["role"] for turn in server.requests[1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]
    server.faults += [Fault(text=text), Fault(text=text)]
    (ballot,) = ask(server, rubric)
    assert ballot.outcome == "unparsed" and ballot.preferred is None
    assert ballot.usage["output_tokens"] == 20, "what was billed is counted"


@pytest.mark.parametrize(
    "category", ["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"]
)
def test_a_refusal_is_an_outcome_with_its_category(
    server: Server, rubric: Path, category: str
) -> None:
    server.faults += [Fault(stop_reason="refusal", category=category)]
    (ballot,) = ask(server, rubric)
    assert (ballot.outcome, ballot.category) == ("refusal", category)
    assert len(server.requests) == 1, "a refusal is not asked again"


def test_a_cut_off_verdict_gets_one_longer_try(server: Server, rubric: Path) -> None:
    server.faults += [Fault(stop_reason="max_tokens")]
    (ballot,) = ask(server, rubric)
    assert ballot.outcome == "first"
    assert [r["max_tokens"] for r in server.requests] == [4096, 8192]
    server.faults += [Fault(stop_reason="max_tokens")] * 2
    (ballot,) = ask(server, rubric)
    assert ballot.outcome == "cut_off"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=400, error="invalid_request_error", message="prompt is too long: 9 > 8"),
        Fault(status=413, error="request_too_large", message="Request too long"),
        Fault(stop_reason="model_context_window_exceeded"),
    ],
    ids=lambda fault: str(fault.status),
)
def test_what_exceeds_the_context_is_an_outcome(server: Server, rubric: Path, fault: Fault) -> None:
    server.faults += [fault]
    ballots = ask(server, rubric, count=3)
    assert sorted(ballot.outcome for ballot in ballots) == ["exceeds_context", "first", "first"]
    assert len(server.requests) == 3


def test_what_was_decided_before_a_failure_is_handed_over(server: Server, rubric: Path) -> None:
    config = ClaudeConfig(
        type="claude", model="m", rubric=rubric, base_url=server.url, concurrency=1
    )
    judge = ClaudeJudge(config, backoff_base=0.001)
    server.faults += [Fault(), Fault(), Fault(status=401)]
    ballots = []
    with pytest.raises(JudgeFailed):
        for group in judge.compare([comparison(n, "GOOD", "bad") for n in range(9)]):
            ballots += group
    assert [ballot.prompt_id for ballot in ballots] == ["p0", "p1"]


def test_no_more_is_asked_once_the_time_is_over(server: Server, rubric: Path) -> None:
    server.latency = 0.1
    config = ClaudeConfig(
        type="claude",
        model="m",
        rubric=rubric,
        base_url=server.url,
        concurrency=2,
        max_hours=0.25 / 3600,
    )
    ballots = []
    with pytest.raises(JudgeFailed, match=r"max_hours .* has elapsed"):
        for group in ClaudeJudge(config).compare([comparison(n, "GOOD", "b") for n in range(99)]):
            ballots += group
    assert len(ballots) == len(server.requests) < 20, "what was in flight was awaited"


def test_a_consumer_may_stop_early(server: Server, rubric: Path) -> None:
    config = ClaudeConfig(
        type="claude", model="m", rubric=rubric, base_url=server.url, concurrency=2
    )
    stream = ClaudeJudge(config).compare([comparison(n, "GOOD", "bad") for n in range(500)])
    assert len(list(islice(stream, 3))) == 3
    stream.close()
    assert len(server.requests) < 500


def test_a_wrong_key_is_said_before_any_question(server: Server, rubric: Path, monkeypatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-wrong")
    judge = ClaudeJudge(ClaudeConfig(type="claude", model="m", rubric=rubric, base_url=server.url))
    with pytest.raises(ConfigError, match=r"credentials \(HTTP 401\): check ANTHROPIC_API_KEY$"):
        judge.check()
    assert not server.requests


def test_a_missing_key_is_said_before_any_request(rubric: Path, monkeypatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(ConfigError, match="needs ANTHROPIC_API_KEY, which is not set"):
        ClaudeJudge(ClaudeConfig(type="claude", model="m", rubric=rubric))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"\xff", "not UTF-8"), (None, "No such file")]
)
def test_an_unreadable_rubric_is_named(tmp_path: Path, content, message: str) -> None:
    path = tmp_path / "r.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"rubric: .*r\.md: .*{message}"):
        ClaudeJudge(ClaudeConfig(type="claude", model="m", rubric=path))
