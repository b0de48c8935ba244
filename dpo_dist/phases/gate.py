"""The gate: whether the evaluation's outcome lets the trained model pass."""

from __future__ import annotations

from dpo_dist.artifacts import read_json
from dpo_dist.config import Config
from dpo_dist.console import say
from dpo_dist.errors import GATE, DataError
from dpo_dist.evaluation.outcome import decide
from dpo_dist.phases.runs import phase_dir


def gate(config: Config) -> int:
    """Say the outcome of the complete evaluate phase by the present `evaluate.guard`, and return
    its exit code.

    Raises `DataError` for scores of an earlier version, which had no tests.
    """
    assert config.evaluate is not None
    path = phase_dir(config, "evaluate") / "scores.json"
    scores = read_json(path)
    if "outcome" not in scores:
        raise DataError(
            f"{path} was written by an earlier version and has no tests. Delete the manifest.json "
            "next to it and run the command again: answers and ballots are reused"
        )
    found = decide(scores, config.evaluate.guard)
    say(f"gate: {found.outcome}: {'; '.join(found.reasons)}")
    say(f"gate: guarded: {', '.join(found.guarded) or 'no metric'}")
    return GATE[found.outcome]
