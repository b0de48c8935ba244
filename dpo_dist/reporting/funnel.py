"""What became of the preference data on its way to the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def funnel(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What went into the preference data and what became of it, phase by phase."""
    steps = []
    for phase, unit in (("sample", "prompts"), ("judge", "comparisons"), ("train", "pairs")):
        if phase in manifests:
            counts = manifests[phase]["counts"]
            dropped = {reason: n for reason, n in counts["dropped"].items() if n}
            assert counts["in"] == counts["kept"] + sum(dropped.values()), f"{phase} leaks"
            steps.append({"phase": phase, "unit": unit, **counts, "dropped": dropped})
    return steps


def funnel_line(step: Mapping[str, Any]) -> str:
    """A step of the funnel as an item of a Markdown list."""
    dropped = ", ".join(f"{n} {reason}" for reason, n in step["dropped"].items()) or "none"
    kept = f"{step['kept']} kept"
    if "kept_inconsistent" in step:
        kept += f" ({step['kept_inconsistent']} inconsistent)"
    return f"- {step['phase']}: {step['in']} {step['unit']} in, {kept}; dropped: {dropped}"
