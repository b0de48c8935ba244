"""The commands that are no phase, a folder each: `command.py` has its options (`add`) and does it
(`run`, which returns the exit code)."""

from __future__ import annotations

from dpo_dist.tools.compare import command as compare
from dpo_dist.tools.doctor import command as doctor
from dpo_dist.tools.doctor import preflight_command as preflight
from dpo_dist.tools.launch import command as launch
from dpo_dist.tools.plan import command as plan
from dpo_dist.tools.push import command as push
from dpo_dist.tools.watch import command as watch

TOOLS = {
    "plan": plan,
    "launch": launch,
    "preflight": preflight,
    "doctor": doctor,
    "watch": watch,
    "push": push,
    "compare": compare,
}
