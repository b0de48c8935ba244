"""What a phase asks of a judge is paid for once, whichever round asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.asking import JudgeSession
from dpo_dist.storage.artifacts import phase_directory
from dpo_dist.storage.records import Message, Prompt
from tests.unit.judging.test_panel import Planted
from tests.unit.runs.test_run import at


class Paid(Planted):
    def expected_usage(self, comparisons: Sequence[Comparison]) -> dict[str, int]:
        return {"input_tokens": len(comparisons)} if comparisons else {}


def test_no_round_pays_for_the_ballots_of_another(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="q"),))
    comparison = Comparison(prompt, "dpo", "sft", "GOOD", "bad")
    judges = []
    for run in at(tmp_path, rounds=2).rounds():
        judges.append(Paid())
        with phase_directory(run.directory("evaluate"), {}) as out:
            session = JudgeSession(judges[-1], Ledger(), out, run)
            judged = session.compare([comparison], approve=lambda cost: None, name="t")
        assert judged.verdicts[0].preferred == "dpo"
    assert [judge.asked for judge in judges] == [2, 0]
