"""What the program says outside a terminal, where every line begins with its time."""

from __future__ import annotations

import re

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} "


def without_times(text: str) -> str:
    """The lines without their times, which each of them must have."""
    lines = text.splitlines()
    assert all(re.match(TIME, line) for line in lines), lines
    return "\n".join(re.sub(TIME, "", line) for line in lines)
