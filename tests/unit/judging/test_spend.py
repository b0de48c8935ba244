"""Money: what was spent is known, a limit is kept, and what was paid for is kept, too."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import ConfigError, JudgeFailed
from dpo_dist.judging.claude import ClaudeJudge
from dpo_dist.judging.panel import judge_all
from dpo_dist.judging.spend import Ledger, Price, open_ledger, read_prices
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Ballot
from tests.anthropic_server import KEY, Fault, Server, serve
from tests.unit.judging.test_panel import comparisons

PRICE = Price(input=5, output=25, cache_write=6.25, cache_read=0.5)
A_REQUEST = (100 * 5 + 10 * 25) / 1e6  # what the server's usage costs, USD


def settings(tmp_path: Path, **more: object) -> ClaudeConfig:
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    values = {"type": "claude", "model": "claude-opus-4-7", "rubric": tmp_path / "rubric.md"}
    return ClaudeConfig.model_validate(values | more)


def judge_with(config: ClaudeConfig, path: Path) -> Ledger:
    """Judge twenty comparisons, 40 requests, and return the ledger."""
    ledger = open_ledger(config)
    with Journal(path, Ballot) as journal:
        judge_all(
            ClaudeJudge(config, backoff_base=0.001),
            comparisons(20),
            journal,
            ledger=ledger,
            both_orders=True,
            seed=0,
        )
    return ledger


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with serve() as server:
        yield server


def test_every_kind_of_token_has_its_price() -> None:
    usage = {
        "input_tokens": 1_000_000,
        "output_tokens": 100_000,
        "cache_creation_input_tokens": 200_000,
        "cache_read_input_tokens": 2_000_000,
        "attempts": 3,
    }
    assert PRICE.of(usage) == pytest.approx(5 + 2.5 + 1.25 + 1)


def test_a_repaired_verdict_costs_both_attempts(server: Server, tmp_path: Path) -> None:
    server.faults += [Fault(text="not JSON"), Fault(status=500)]
    config = settings(tmp_path, base_url=server.url, concurrency=1)
    spend = judge_with(config, tmp_path / "ballots.jsonl").spend()
    assert spend is not None
    assert spend.usd == pytest.approx(41 * A_REQUEST)
    assert spend.usage["attempts"] == 42
    assert spend.usage["attempts_with_unknown_usage"] == 1
    assert date.fromisoformat(spend.prices_as_of) <= date.today()


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_limit_is_kept_and_what_was_paid_for_is_used(
    server: Server, tmp_path: Path, concurrency: int
) -> None:
    journal = tmp_path / "ballots.jsonl"
    config = settings(tmp_path, base_url=server.url, concurrency=concurrency)
    poor = config.model_copy(update={"max_usd": 10.5 * A_REQUEST})
    with pytest.raises(JudgeFailed, match=r"max_usd .* would be exceeded: \$0\.00"):
        judge_with(poor, journal)
    asked = len(server.requests)
    assert 0 < asked <= 10
    assert len(journal.read_text().splitlines()) == asked, "what was in flight is kept"
    with pytest.raises(JudgeFailed, match="comparisons left"):
        judge_with(poor, journal)
    assert len(server.requests) == asked, "a spent limit asks nothing more"
    ledger = judge_with(config, journal)
    assert len(server.requests) == 40, "nothing is paid for twice"
    assert ledger.usd == pytest.approx(40 * A_REQUEST)


def test_an_unknown_price_is_unknown_and_not_zero(server: Server, tmp_path: Path, capsys) -> None:
    config = settings(tmp_path, base_url=server.url, model="claude-next")
    ledger = judge_with(config, tmp_path / "ballots.jsonl")
    assert ledger.usd is None and ledger.note == ""
    spend = ledger.spend()
    assert spend is not None and spend.usd is None
    assert "the price is unknown" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="price of claude-next is unknown"):
        open_ledger(config.model_copy(update={"max_usd": 1.0}))


def test_the_forecast_counts_both_orders_and_names_its_date(
    server: Server, tmp_path: Path, capsys
) -> None:
    judge_with(settings(tmp_path, base_url=server.url), tmp_path / "ballots.jsonl")
    said = capsys.readouterr().err
    assert "judge: 40 requests, about 0.00 M tokens to read and 0.02 M to write: about $0.4" in said
    assert f"(prices of {read_prices(None).as_of})" in said


def test_a_long_rubric_is_reckoned_from_the_cache(tmp_path: Path, monkeypatch) -> None:
    from tests.contracts.test_judges import comparison

    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    config = settings(tmp_path)
    config.rubric.write_text("x" * 7000)
    usage = ClaudeJudge(config).expected_usage([comparison(n, "a", "b") for n in range(5)])
    assert usage["cache_creation_input_tokens"] == 2000
    assert usage["cache_read_input_tokens"] == 4 * 2000
    assert ClaudeJudge(config).expected_usage([]) == {}


def test_prices_of_the_user_s_own(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(
        "as_of = 2026-01-02\n[models]\n"
        '"my-model" = {input = 1, output = 2, cache_write = 3, cache_read = 4}\n'
    )
    config = settings(tmp_path, model="my-model", prices=own, max_usd=3)
    assert open_ledger(config).usd == 0
    assert read_prices(own).as_of == "2026-01-02"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("as_of = ", "not TOML"),
        ("as_of = 2026-01-02", "models: Field required"),
        ("as_of = 2026-01-02\n[models]\nm = {input = -1}", r"models\.m\.input"),
    ],
)
def test_a_wrong_price_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prices(path)


def test_a_missing_price_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_prices(tmp_path / "none.toml")
