"""Limits of the account: everybody waits, fewer go on, and all come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.claude import ClaudeJudge
from dpo_dist.judging.retry import Throttle
from tests.anthropic_server import KEY, Server, serve
from tests.contracts.test_judges import asked, comparison


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with serve() as server:
        yield server


def test_a_wave_of_refusals_halves_once_and_answers_bring_all_back() -> None:
    async def scenario() -> None:
        throttle = Throttle(8)
        async with throttle.turn() as first, throttle.turn() as second:
            throttle.refused(first, 0.0)
            throttle.refused(second, 0.0)  # started before the cut: the same wave
            assert throttle.allowed == 4
        async with throttle.turn() as later:
            throttle.refused(later, 0.0)
        assert throttle.allowed == 2
        for _ in range(100):
            throttle.answered({})
        assert throttle.allowed == 8

    asyncio.run(scenario())


def test_no_more_than_allowed_are_in_flight() -> None:
    async def scenario() -> int:
        throttle, running, most = Throttle(3), 0, 0

        async def work() -> None:
            nonlocal running, most
            async with throttle.turn():
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.005)
                running -= 1

        await asyncio.gather(*(work() for _ in range(20)))
        return most

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize("how", ["refused", "header"])
def test_a_pause_is_everybody_s(how: str) -> None:
    async def scenario() -> float:
        throttle = Throttle(4)
        if how == "refused":
            throttle.refused(time.monotonic(), 0.2)
        else:
            reset = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
            throttle.answered({"anthropic-ratelimit-requests-remaining": "5"})
            throttle.answered(
                {
                    "anthropic-ratelimit-output-tokens-remaining": "0",
                    "anthropic-ratelimit-output-tokens-reset": reset.replace("+00:00", "Z"),
                }
            )
        begun = time.monotonic()
        async with throttle.turn():
            return time.monotonic() - begun

    assert 0.15 < asyncio.run(scenario()) < 2


def test_patience_ends() -> None:
    async def scenario() -> None:
        throttle = Throttle(4, patience=0.05)
        throttle.refused(time.monotonic(), 0.0)
        await asyncio.sleep(0.1)
        throttle.refused(time.monotonic(), 0.0)

    with pytest.raises(JudgeFailed, match="refused every request"):
        asyncio.run(scenario())


def test_a_judge_settles_below_what_the_account_allows(server: Server, tmp_path: Path) -> None:
    """Sixteen workers on an account with three requests at a time: all are answered, and far
    fewer are refused than when everybody tries again alone."""
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    server.limit, server.latency = 3, 0.02
    config = ClaudeConfig(
        type="claude",
        model="m",
        rubric=tmp_path / "rubric.md",
        base_url=server.url,
        concurrency=16,
        max_attempts=2,
    )
    judge = ClaudeJudge(config, backoff_base=0.01)
    ballots = asked(judge, [comparison(n, "GOOD", "bad") for n in range(60)])
    assert {ballot.outcome for ballot in ballots} == {"first"} and len(ballots) == 60
    refused = sum(ballot.usage.get("attempts_with_unknown_usage", 0) for ballot in ballots)
    assert 0 < refused < 60
