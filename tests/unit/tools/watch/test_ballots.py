"""What ballots have cost so far: by declared prices and by tables, and never silently nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dpo_dist.config import BilledJudge, JudgeConfig
from dpo_dist.config.runfile import load_config
from dpo_dist.storage.artifacts import write_json
from dpo_dist.storage.records import Ballot
from dpo_dist.tools.watch.ballots import BallotBox
from dpo_dist.tools.watch.run import WatchedRun

TOKENS = {"input_tokens": 100_000, "output_tokens": 1_000, "attempts": 1}
CALL = {"attempts": 1}
FUNCTION = {"type": "function", "path": "my_judge:prefer"}
SERVER = {"type": "openai_compatible", "model": "m", "rubric": "r.md", "base_url": "http://a/v1"}
CLAUDE = {"type": "claude", "model": "claude-opus-4-7", "rubric": "r.md"}
TABLE = """as_of = 2026-03-01
[models.m]
input = 2.0
output = 10.0
cache_write = 0
cache_read = 0
"""


def judge(section: dict[str, Any], **keys: Any) -> BilledJudge:
    found: BilledJudge = TypeAdapter(JudgeConfig).validate_python({**section, **keys})
    return found


def ballots(judge: BilledJudge, count: int, usage: dict[str, int], **more: Any) -> list[Ballot]:
    """As many that the judge has given, whose identity ends with a digest."""
    values = {"first": "slot-0", "second": "slot-1", "outcome": "first", "usage": usage}
    values |= {"judge": f"{judge.name}:0123456789ab", **more}
    return [
        Ballot(key=f"{judge.name} {number}", prompt_id=f"p{number}", **values)
        for number in range(count)
    ]


def write(folder: Path, given: list[Ballot]) -> None:
    lines = [ballot.model_dump_json() + "\n" for ballot in given]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ballots.jsonl").write_text("".join(lines))


def figures(folder: Path, given: list[Ballot], *judges: BilledJudge) -> tuple[str, ...]:
    """What a phase shows that asks these judges."""
    write(folder, given)
    box = BallotBox(folder, lambda: judges)
    box.look()
    return box.figures()


def test_a_declared_price_is_paid_for_every_call(tmp_path: Path) -> None:
    own = judge(FUNCTION, price=0.25)
    canary = ballots(own, 1, CALL, first="right", second="wrong")
    said = figures(tmp_path, [*ballots(own, 2, CALL), *canary], own)
    assert said == ("1 on canaries, $0.75 so far",), "a declared price has no date"


def test_a_price_table_of_the_run_s_own_is_used(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(TABLE)
    server = judge(SERVER, prices=tmp_path / "prices.toml")
    said = figures(tmp_path, ballots(server, 3, TOKENS), server)
    assert said == ("$0.63 so far (prices of 2026-03-01)",)  # 3 x (0.2 + 0.01)


def test_two_judges_are_summed_and_the_table_s_date_is_kept(tmp_path: Path) -> None:
    claude, own = judge(CLAUDE), judge(FUNCTION, price=0.25)
    given = [*ballots(claude, 2, TOKENS), *ballots(own, 1, CALL)]
    for order in (given, given[::-1]):
        (said,) = figures(tmp_path, order, claude, own)
        assert said.startswith("$1.30 so far (prices of 20")  # 2 x (0.5 + 0.025) + 0.25


@pytest.mark.parametrize(
    ("section", "usage", "text"),
    [
        (SERVER, TOKENS, "202000 tokens, cost unknown"),
        ({**CLAUDE, "model": "claude-next"}, TOKENS, "202000 tokens, cost unknown"),
        (FUNCTION, CALL, "cost unknown"),
        ({**SERVER, "prices": "absent.toml"}, TOKENS, "202000 tokens, cost unknown"),
    ],
    ids=["not in the table", "a new model", "none declared", "no such table"],
)
def test_a_price_that_is_unknown_is_said_to_be_so(
    section: dict[str, Any], usage: dict[str, int], text: str, tmp_path: Path
) -> None:
    found = judge(section)
    assert figures(tmp_path, ballots(found, 2, usage), found) == (text,)


def test_a_judge_that_the_run_file_does_not_name_has_no_price(tmp_path: Path) -> None:
    stranger = judge(FUNCTION, path="another:prefer", price=1.0)
    assert figures(tmp_path, ballots(stranger, 1, CALL), judge(FUNCTION, price=0.25)) == (
        "cost unknown",
    )


def test_one_unknown_price_leaves_no_sum(tmp_path: Path) -> None:
    own, server = judge(FUNCTION, price=0.25), judge(SERVER)
    given = [*ballots(own, 2, CALL), *ballots(server, 1, TOKENS)]
    assert figures(tmp_path, given, own, server) == ("101000 tokens, cost unknown",)


def test_what_used_nothing_has_no_cost(tmp_path: Path) -> None:
    own = judge(FUNCTION)
    assert figures(tmp_path, ballots(own, 2, {}), own) == ()


def test_a_phase_that_begins_anew_is_counted_anew(tmp_path: Path) -> None:
    own = judge(FUNCTION, price=0.25)
    write(tmp_path, ballots(own, 3, CALL))
    box = BallotBox(tmp_path, lambda: [own])
    box.look()
    assert (box.count, box.figures()) == (3, ("$0.75 so far",))
    write(tmp_path, ballots(own, 1, CALL))
    box.look()
    assert (box.count, box.figures()) == (1, ("$0.25 so far",))


def test_the_price_is_the_run_file_s_and_unknown_without_it(write_run, tmp_path: Path) -> None:
    """A fingerprint lacks prices, since they may change between a phase and its resumption."""
    path = write_run(
        model={"base": "m"},
        sample={"prompts": {"path": "p.jsonl"}, "engine": {"type": "hf"}},
        judge={"judge": {**FUNCTION, "price": 0.25}},
    )
    config = load_config(path)
    assert config.judge is not None and isinstance(config.judge.judge, BilledJudge)
    out = tmp_path / "runs" / "test" / "judge"
    write_json(out / "fingerprint.json", {"config": config.fixed_sections(["judge"])})
    write(out, ballots(config.judge.judge, 4, CALL))
    told = {
        given: next(step for step in WatchedRun.open(given).look() if step.name == "judge")
        for given in (path, out.parent)
    }
    assert told[path].progress.figures == ("$1.00 so far",)
    assert told[out.parent].progress.figures == ("cost unknown",)
