"""What the report phase adds up over rounds."""

from __future__ import annotations

from pathlib import Path

from dpo_dist.phases.report import ranking_of_rounds
from dpo_dist.storage.artifacts import write_records
from dpo_dist.storage.records import Verdict


def verdicts(a: str, b: str, wins: int, losses: int) -> list[Verdict]:
    won = [True] * wins + [False] * losses
    return [
        Verdict(
            prompt_id=f"p{number}",
            between=(a, b),
            outcome="preferred",
            preferred=a if first else b,
            other=b if first else a,
        )
        for number, first in enumerate(won)
    ]


def test_the_policies_of_all_rounds_have_strengths_beside_base_and_sft(tmp_path: Path) -> None:
    sft_over_base = verdicts("sft", "base", 15, 5)
    folders = [tmp_path / f"round-{number}" / "evaluate" for number in (1, 2)]
    for folder, wins in zip(folders, (12, 16), strict=True):
        records = [*verdicts("dpo", "sft", wins, 20 - wins), *sft_over_base]
        write_records(folder / "verdicts.jsonl", records)
    found = ranking_of_rounds(folders)
    assert found is not None and found.n == 20 and not found.circular
    assert [s.arm for s in found.strengths] == ["round 2", "round 1", "sft", "base"]

    # What is asked again in every round counts once.
    once = ranking_of_rounds(folders[:1])
    assert once is not None
    apart = {s.arm: s.strength for s in once.strengths}
    together = {s.arm: s.strength for s in found.strengths}
    assert abs(apart["sft"] - apart["base"] - (together["sft"] - together["base"])) < 1e-6


def test_without_verdicts_there_is_no_ranking(tmp_path: Path) -> None:
    assert ranking_of_rounds([]) is None
    assert ranking_of_rounds([tmp_path / "round-1" / "evaluate"]) is None
