"""A server of chat completions: its faults, its messages, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_dist.config import OpenAiConfig
from dpo_dist.errors import ConfigError, JudgeFailed
from dpo_dist.judging.openai_compatible import OpenAiJudge
from dpo_dist.judging.spend import open_ledger
from dpo_dist.storage.records import Ballot
from dpo_dist.system.console import scrub
from tests.anthropic_server import Fault
from tests.contracts.test_judges import asked, comparison
from tests.openai_server import KEY, MODEL, Server, serve


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


def settings(server: Server, tmp_path: Path, **more: object) -> OpenAiConfig:
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    values = {
        "type": "openai_compatible",
        "model": MODEL,
        "base_url": server.url,
        "rubric": tmp_path / "rubric.md",
        "max_attempts": 4,
    }
    return OpenAiConfig.model_validate(values | more)


def ask(server: Server, tmp_path: Path, **more: object) -> list[Ballot]:
    judge = OpenAiJudge(settings(server, tmp_path, **more), backoff_base=0.001)
    return asked(judge, [comparison(0, "GOOD", "bad")])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429),
        Fault(status=429, headers={"retry-after": "0.01"}),
        Fault(status=429, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Fault(status=500),
        Fault(status=503),
        Fault(status=0),
        Fault(body=b"<html>busy</html>"),
        Fault(body=b"<html>busy</html>", headers={"content-type": "text/html"}),
        Fault(body=b'{"id": "chatcmpl-1", "choi'),
        Fault(body=b'{"id": "chatcmpl-1", "choices": []}'),
        Fault(body=b"null"),
    ],
    ids=lambda fault: f"{fault.status}{fault.headers}{(fault.body or b'')[:26]}",
)
def test_a_passing_fault_is_survived(server: Server, tmp_path: Path, fault: Fault) -> None:
    server.faults += [fault, fault]
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "first"
    assert len(server.requests) == 3
    assert ballot.usage == {
        "attempts": 3,
        "attempts_with_unknown_usage": 2,
        "input_tokens": 60,
        "cache_read_input_tokens": 40,
        "output_tokens": 10,
    }
    assert ballot.answered_by == MODEL and ballot.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (Fault(status=500), "failed 4 times in a row", 4),
        (Fault(status=429, headers={"retry-after": "99999"}), "retry only after 99999 s", 1),
        (Fault(status=401), "refused the credentials .*: check OPENAI_API_KEY", 1),
        (Fault(status=403), "refused the credentials", 1),
        (Fault(status=400), "refused the request: BadRequestError", 1),
        (Fault(status=429, error_code="insufficient_quota"), "spend limit", 1),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
def test_a_lasting_fault_stops_with_its_reason(
    server: Server, tmp_path: Path, fault: Fault, message: str, requests: int
) -> None:
    server.faults += [fault] * 9
    with pytest.raises(JudgeFailed, match=message):
        ask(server, tmp_path)
    assert len(server.requests) == requests


@pytest.mark.parametrize(
    "text", ["not JSON", '{"reasoning": "r", "verdict": "third"}', '{"verdict": "first"}', ""]
)
def test_a_malformed_verdict_is_repaired_once_and_never_guessed(
    server: Server, tmp_path: Path, text: str
) -> None:
    server.faults += [Fault(text=text)]
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "first"
    roles = [turn["role"] for turn in server.requests[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    server.faults += [Fault(text=text)] * 2
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "unparsed" and ballot.preferred is None
    assert ballot.usage["output_tokens"] == 20, "what was used is counted"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_the_verdict_is_in_the_content_and_not_in_the_thought(
    server: Server, tmp_path: Path, key: str
) -> None:
    server.thought = {key: '{"reasoning": "a first guess", "verdict": "second"}'}
    server.thought_tokens = 70
    (ballot,) = ask(server, tmp_path)
    assert (ballot.outcome, ballot.reasoning) == ("first", "GOOD decides")
    assert ballot.usage["output_tokens"] == 80, "tokens of the thought that only the total counts"
    assert len(server.requests) == 1


@pytest.mark.parametrize("reason", ["length", "end_turn"])
def test_a_thought_that_took_all_tokens_is_cut_off(
    server: Server, tmp_path: Path, reason: str
) -> None:
    """It is asked once more with twice the tokens, whatever the server calls the end."""
    server.thought, server.thought_tokens = {"reasoning_content": "Hm, let me see"}, 90
    server.faults += [Fault(text="", stop_reason=reason)]
    (ballot,) = ask(server, tmp_path, max_tokens=100)
    assert ballot.outcome == "first"
    assert [r["max_completion_tokens"] for r in server.requests] == [100, 200]
    assert len(server.requests[1]["messages"]) == 2, "the question again, without a repair"
    server.faults += [Fault(text="", stop_reason="length")] * 2
    (ballot,) = ask(server, tmp_path, max_tokens=100)
    assert (ballot.outcome, ballot.reasoning) == ("cut_off", "Hm, let me see")


@pytest.mark.parametrize("reason", ["refusal", "content_filter"])
def test_a_refusal_is_an_outcome_with_its_category(
    server: Server, tmp_path: Path, reason: str
) -> None:
    server.faults += [Fault(stop_reason=reason)]
    (ballot,) = ask(server, tmp_path)
    assert (ballot.outcome, ballot.category) == ("refusal", reason)
    assert len(server.requests) == 1, "a refusal is not asked again"


def test_a_cut_off_verdict_gets_one_longer_try(server: Server, tmp_path: Path) -> None:
    server.faults += [Fault(stop_reason="length")]
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "first"
    assert [r["max_completion_tokens"] for r in server.requests] == [4096, 8192]
    server.faults += [Fault(stop_reason="length")] * 2
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "cut_off"


def test_what_exceeds_the_context_is_said_so_and_a_second_try_leaves_the_first(
    server: Server, tmp_path: Path
) -> None:
    too_long = Fault(status=400, text="This model's maximum context length is 8192 tokens.")
    server.faults += [too_long]
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "exceeds_context"
    server.faults += [Fault(stop_reason="length"), too_long]
    (ballot,) = ask(server, tmp_path)
    assert ballot.outcome == "cut_off"


def test_the_key_comes_from_its_variable_and_is_hidden(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(server, tmp_path, api_key_variable="MY_KEY")
    assert server.keys == {"Bearer none"}
    monkeypatch.setenv("MY_KEY", KEY)
    ask(server, tmp_path, api_key_variable="MY_KEY")
    assert server.keys == {"Bearer none", f"Bearer {KEY}"}
    assert scrub(f"key {KEY}") == "key <MY_KEY>"


def test_only_a_server_that_wants_a_key_may_send_a_bill(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(server, tmp_path)
    questions = [comparison(n, "GOOD", "bad") for n in range(5)]
    assert OpenAiJudge(config).expected_usage(questions) == {}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    usage = OpenAiJudge(config).expected_usage(questions)
    assert usage["output_tokens"] == 2000 and usage["input_tokens"] > 0
    ledger = open_ledger(config)
    ledger.add(asked(OpenAiJudge(config), questions[:1])[0].usage)
    assert "the price is unknown" in ledger.forecast(5, usage)
    spend = ledger.spend()
    assert spend is not None and spend.usd is None
    assert spend.usage["input_tokens"] == 60


def test_what_decides_a_verdict_is_in_the_identity(server: Server, tmp_path: Path) -> None:
    def identity(**more: object) -> str:
        return OpenAiJudge(settings(server, tmp_path, **more)).identity

    assert identity() == identity(concurrency=1, max_attempts=2)
    others = [{"temperature": 0.5}, {"model": "another"}, {"base_url": "http://other/v1"}]
    assert len({identity(), *(identity(**other) for other in others)}) == 4


def test_the_server_is_asked_what_it_serves(server: Server, tmp_path: Path) -> None:
    def check(**more: object) -> None:
        OpenAiJudge(settings(server, tmp_path, **more)).check()

    check()
    with pytest.raises(ConfigError, match=f"does not serve the model another, but {MODEL}"):
        check(model="another")
    with pytest.raises(ConfigError, match=r"max_tokens 8192 leaves no room .* 8192 tokens"):
        check(max_tokens=8192)
    server.models = None
    check(model="another")


def test_a_server_that_is_not_there_is_said_before_any_question(tmp_path: Path) -> None:
    with serve() as server:
        config = settings(server, tmp_path)
    with pytest.raises(ConfigError, match=r"no server responds at base_url http://127"):
        OpenAiJudge(config).check()
