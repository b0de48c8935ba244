"""The commands that are no phase, a module each: `add` says what the command line is asked, `run`
does it and returns the exit code."""

from __future__ import annotations

from dpo_dist.commands import compare, doctor, launch, plan, preflight, push, watch

TOOLS = {
    "plan": plan,
    "launch": launch,
    "preflight": preflight,
    "doctor": doctor,
    "watch": watch,
    "push": push,
    "compare": compare,
}
