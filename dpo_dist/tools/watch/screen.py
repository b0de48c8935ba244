"""Shows a run: redrawn in place on a terminal, elsewhere printed when something changes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from dpo_dist.reporting.text import visible
from dpo_dist.runs.manifests import EvaluateManifest, JudgeManifest
from dpo_dist.tools.watch.ballots import duration
from dpo_dist.tools.watch.run import PhaseStatus, State, WatchedRun

LOOK_SECONDS = 2.0
LINES_SECONDS = 15.0  # between two prints without a new state, if there is no terminal


def watch(run: WatchedRun, *, once: bool = False, screen: TextIO | None = None) -> None:
    """Show the run until it is complete or the user interrupts; with `once`, only its state now."""
    screen = screen or sys.stdout
    in_place = screen.isatty() and not once
    drawn, written = 0, float("-inf")
    states: list[State] = []
    with suppress(KeyboardInterrupt):
        while True:
            steps = run.look()
            lines = [visible(line).replace("\n", " ") for line in describe(run, steps)]
            new_states = [step.state for step in steps]
            if in_place:
                drawn = _redraw(screen, lines, drawn)
            elif new_states != states or time.monotonic() - written >= LINES_SECONDS:
                screen.write("\n".join(lines) + "\n")
                screen.flush()
                states, written = new_states, time.monotonic()
            if once or (steps and set(new_states) == {"done"}):
                return
            time.sleep(LOOK_SECONDS)


def describe(run: WatchedRun, steps: Sequence[PhaseStatus]) -> list[str]:
    """The state of the run as lines of text."""
    lines = [f"{run.root.name}  {run.root}  {time.strftime('%H:%M:%S')}"]
    if all(step.state == "waiting" for step in steps):
        state = "is empty" if run.root.is_dir() else "does not exist yet"
        lines.append(f"  no phase has started: {run.root.resolve()} {state}")
    width = max((len(step.name) for step in steps), default=0)
    for step in steps:
        first, *more = _about(step)
        lines.append(f"  {step.name:<{width}}  {first}")
        lines += [f"  {'':<{width}}  {line}" for line in more]
    return lines


def _about(step: PhaseStatus) -> list[str]:
    progress = step.progress
    if step.state == "waiting":
        return ["-"]
    details = [*progress.figures, *(f"! {alarm}" for alarm in progress.alarms)]
    if step.state == "done":
        return [_outcome(step), *details]
    state, by = "running", "by"
    if step.state == "quiet":
        state, by = f"no sign of work for {duration(step.quiet_seconds)}", "last by"
    holder = [f"{by} {step.holder}"] if step.holder else []
    return [f"{state}: {_measure(step)}", *details, *holder]


def _outcome(step: PhaseStatus) -> str:
    """The result of a complete phase; its manifest is None if it is of another version."""
    manifest = step.manifest
    if manifest is None:
        return "done"
    words = [f"done in {duration(manifest.wall_seconds)}"]
    if step.name != "report":
        words.append(f"{manifest.counts.kept} of {manifest.counts.received} kept")
    spend = manifest.spend if isinstance(manifest, JudgeManifest | EvaluateManifest) else None
    if spend is not None and spend.usd is not None:
        words.append(f"${spend.usd:.2f}")
    return ", ".join(words)


def _measure(step: PhaseStatus) -> str:
    progress = step.progress
    if not progress.unit:
        return "no figures"
    if progress.total is None:
        return f"{progress.done} {progress.unit}"
    of = "of at most" if progress.at_most else "of"
    share = 100 * progress.done / progress.total
    words = [f"{progress.done} {of} {progress.total} {progress.unit} ({share:.0f} %)"]
    if step.rate and step.state == "running":
        unit, rate = ("second", step.rate) if step.rate >= 1 else ("minute", 60 * step.rate)
        words.append(f"{rate:.3g} per {unit}" + (" on average" if step.average else ""))
        if step.seconds_left is not None:
            words.append(f"{duration(step.seconds_left)} remaining")
    return ", ".join(words)


def _redraw(screen: TextIO, lines: Sequence[str], before: int) -> int:
    """Replace the `before` lines drawn last, and return the number of new lines. They are cut to
    the terminal's width, because wrapped lines would break the count. Of too many lines, the first
    and the last ones are shown: running phases are below complete ones."""
    size = shutil.get_terminal_size()
    last = min(len(lines) - 1, size.lines - 2)
    shown = [line[: size.columns - 1] for line in (lines[0], *lines[len(lines) - last :])]
    up = f"\x1b[{before}F" if before else ""
    screen.write(up + "\x1b[J" + "\n".join(shown) + "\n")
    screen.flush()
    return len(shown)
