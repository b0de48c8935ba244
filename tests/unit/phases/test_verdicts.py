"""Which arms a judge is asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.phases.verdicts import pairs_to_compare
from dpo_dist.runs.run import Run


@pytest.mark.parametrize(
    ("sft", "changes", "pairs"),
    [
        (True, {}, [("dpo", "sft"), ("sft", "base"), ("dpo", "base")]),
        (True, {"pairwise": "headline"}, [("dpo", "sft")]),
        (True, {"arms": ["base", "dpo"]}, [("dpo", "base")]),
        (False, {}, [("dpo", "sft"), ("dpo", "base")]),
    ],
    ids=["all", "headline", "two arms", "no SFT model"],
)
def test_models_are_compared_with_others_only(
    sft: bool, changes: dict, pairs: list, tiny_model: Path, tmp_path: Path, write_run
) -> None:
    """Without an SFT model, that arm is the base itself."""
    trained = tmp_path / "runs" / "test" / "train" / "model"
    trained.parent.mkdir(parents=True)
    for name in (trained, tmp_path / "sft"):
        name.symlink_to(tiny_model)
    run_file = write_run(
        model={"base": str(tiny_model), "sft": str(tmp_path / "sft") if sft else None},
        evaluate={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {"type": "hf"},
            "metrics": [{"type": "stop_rate"}],
            **changes,
        },
    )
    assert pairs_to_compare(Run(load_config(run_file))) == pairs
