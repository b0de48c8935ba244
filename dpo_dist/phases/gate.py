"""The gate: whether the evaluation's outcome lets the trained model pass."""

from __future__ import annotations

from dpo_dist.config import Config
from dpo_dist.errors import GATE
from dpo_dist.evaluation.outcome import decide
from dpo_dist.runs.directories import phase_dir
from dpo_dist.storage.artifacts import read_json
from dpo_dist.system.console import say


def gate(config: Config) -> int:
    """Say the outcome of the complete evaluate phase by the present `evaluate.guard`, and return
    its exit code."""
    assert config.evaluate is not None
    scores = read_json(phase_dir(config, "evaluate") / "scores.json")
    found = decide(scores, config.evaluate.guard)
    say(f"gate: {found.outcome}: {'; '.join(found.reasons)}")
    say(f"gate: guarded: {', '.join(found.guarded) or 'no metric'}")
    return GATE[found.outcome]
