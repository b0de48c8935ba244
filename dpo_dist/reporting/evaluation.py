"""What a finished evaluation says of SFT+DPO at the first decoding, in a few figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_dist.intervals import wilson
from dpo_dist.storage.artifacts import read_json, read_records
from dpo_dist.storage.records import Generation


def evaluation_figures(evaluate: Path) -> dict[str, Any]:
    """The judge's preference (None without one), the length and the cut-off answers of a complete
    evaluate phase; the first two are those of its scores.json."""
    scores = read_json(evaluate / "scores.json")
    return {
        "decoding": scores["decodings"][0],
        "preferred": scores["preferred"],
        "length": scores["length"],
        "cut_off": cut_off_shares(evaluate)["dpo"],
    }


def cut_off_shares(evaluate: Path) -> dict[str, dict[str, Any]]:
    """By arm, the share of the answers that were cut off, with its interval."""
    answers: Counter[str] = Counter()
    cut_off: Counter[str] = Counter()
    for answer in read_records(evaluate / "generations.jsonl", Generation):
        if answer.decoding == 0:
            answers[answer.arm] += 1
            cut_off[answer.arm] += answer.finish_reason == "length"
    return {arm: asdict(wilson(cut_off[arm], n)) for arm, n in answers.items()}
