"""Whatever goes wrong while judging, the labels are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from dpo_dist.config import ClaudeConfig
from dpo_dist.errors import JudgeFailed
from dpo_dist.judging.claude import ClaudeJudge
from dpo_dist.judging.claude_batches import ClaudeBatchJudge
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.panel import judge_all
from dpo_dist.judging.spend import Ledger
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Ballot, Verdict
from tests.anthropic_server import KEY, Fault, Server, serve
from tests.unit.judging.test_panel import comparisons

COUNT = 30
# Those that end a run are as likely as those that are survived.
ONLINE = [
    Fault(status=429),
    Fault(status=429, headers={"retry-after": "0.01"}),
    Fault(status=429, headers={"retry-after": "99999"}),
    Fault(status=429, error_code="enforced_spend_limit_reached"),
    Fault(status=500),
    Fault(status=529),
    Fault(status=401),
    Fault(status=0),
    Fault(torn=True),
    Fault(body=b"<html>busy</html>"),
    Fault(text="not JSON"),
    Fault(text='{"reasoning": "", "verdict": "first", "score": 9}'),
    Fault(stop_reason="max_tokens"),
]
BATCH = [
    *(Fault(status=0, after=True), Fault(status=0), Fault(status=500), Fault(status=429)),
    *(Fault(status=401), Fault()),
]
FATES = ["errored", "expired", "canceled", "lost", "garbled", "twice", Fault(text="not JSON")]


class Killed(Exception):
    """Stands for the end of the process between two ballots."""


def attempt(judge: Judge, items: list[Comparison], folder: Path, patience: int) -> list[Verdict]:
    """One command, which ends after so many groups of ballots or with the judge's failure."""
    with Journal(folder / "ballots.jsonl", Ballot) as journal:
        keep, groups = journal.append, iter(range(patience))

        def append(ballots: list[Ballot]) -> None:
            if next(groups, None) is None:
                raise Killed
            keep(ballots)

        journal.append = append  # type: ignore[assignment]
        return judge_all(
            judge, items, journal, ledger=Ledger(), both_orders=True, seed=0, repeat=0.2
        ).verdicts


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with serve() as server:
        yield server


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("transport", ["online", "batch"])
def test_every_kept_label_is_right_and_none_is_lost(
    server: Server, tmp_path: Path, transport: str, seed: int, capsys
) -> None:
    draw = random.Random(seed)
    (tmp_path / "rubric.md").write_text("Prefer GOOD.")
    config = ClaudeConfig.model_validate(
        {
            "type": "claude",
            "model": "m",
            "transport": transport,
            "rubric": tmp_path / "rubric.md",
            "base_url": server.url,
            "concurrency": draw.choice([1, 3, 8]),
        }
    )
    server.batches.fates = {n: draw.choice(FATES) for n in range(400) if draw.random() < 0.3}
    verdicts: list[Verdict] | None = None
    items = comparisons(COUNT)
    for _ in range(60):
        draw.shuffle(items)
        # One in a malformed or cut-off answer's repair would make it final; those are one apart.
        server.faults.clear()
        server.batch_faults.clear()
        for _ in range(draw.randrange(4)):
            server.faults += [draw.choice(ONLINE), *(Fault() for _ in range(9))]
            server.batch_faults += [draw.choice(BATCH)]
        judge: Judge
        if transport == "batch":
            judge = ClaudeBatchJudge(config, tmp_path, first_pause=0.001, backoff_base=0.001)
        else:
            judge = ClaudeJudge(config, backoff_base=0.001, timeout=5)
        with contextlib.suppress(JudgeFailed, Killed):
            verdicts = attempt(judge, items, tmp_path, draw.choice([0, 1, 5, 10**6]))
        if verdicts and all(verdict.outcome != "not_answered" for verdict in verdicts):
            break
    assert verdicts is not None
    odd = 0
    for comparison, verdict in zip(items, verdicts, strict=True):
        assert verdict.prompt_id == comparison.prompt.id
        if verdict.outcome == "preferred":
            assert verdict.preferred == ("slot-0" if comparison.first_text == "GOOD" else "slot-1")
        else:
            odd += 1
            assert verdict.outcome in ("unparsed", "cut_off"), "twice malformed, by the draw"
    assert odd <= 3
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
