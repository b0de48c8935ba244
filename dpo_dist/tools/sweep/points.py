"""A sweep: trainings with different settings on the same pairs, evaluated on the same prompts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError, PhaseFailed
from dpo_dist.phases.pipeline import check_before_work, run_in_turn
from dpo_dist.runs.run import POINT_PHASES, SWEEP, Run
from dpo_dist.system.console import counted, say, warn
from dpo_dist.system.yamlfile import parse_yaml
from dpo_dist.tools.sweep.figures import SweepFigures, sweep_point, tried_before
from dpo_dist.tools.sweep.show import write_report

SWEPT_SECTIONS = ("train", "evaluate")


@dataclass(frozen=True)
class Point:
    """A point of a sweep: the name of its directory, its run, and its overrides."""

    name: str
    run: Run
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """The run that the points share, the overrides of all points, the swept keys, the points."""

    base: Run
    fixed: tuple[str, ...]
    swept: tuple[str, ...]
    points: tuple[Point, ...]


def plan_sweep(run_file: Path, overrides: Sequence[str]) -> SweepPlan:
    """Plan a point for every combination of the overrides with several values. Overrides with one
    value apply to all points. Raises `ConfigError` for keys and values that cannot be swept."""
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        values = split_values(text)
        if len(values) == 1:
            fixed.append(override)
            continue
        if not all(values):
            raise ConfigError(f"--set {override}: empty value between commas")
        _check_key(key, swept)
        swept[key] = values
    base = Run(load_config(run_file, fixed))
    if not swept:
        raise ConfigError(
            "nothing to sweep: give a key several values, e.g. --set train.beta=0.03,0.1,0.3"
        )
    if base.config.rounds is not None:
        raise ConfigError("a sweep covers a single round; set rounds: null")
    points = tuple(_points(run_file, fixed, swept))
    names = [point.name for point in points]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"the point {min(repeated)} is listed twice")
    return SweepPlan(base, tuple(fixed), tuple(swept), points)


def split_values(text: str) -> list[str]:
    """Split at commas that are not in brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "," and depth == 0:
            parts.append("")
            continue
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        parts[-1] += character
    return [part.strip() for part in parts]


def sweep(plan: SweepPlan, run_file: Path, *, force: bool) -> int:
    """Run the phases that all points share, then every point, each phase in a separate process, and
    write the report. Returns the exit code. Raises `PhaseFailed` if points failed, after the others
    are complete and reported."""
    for point in plan.points:
        check_before_work(point.run)
    shared = [step for step in plan.base.steps if step.phase not in POINT_PHASES]
    if status := run_in_turn(plan.base, shared, run_file, plan.fixed, force=force):
        return status
    failed: list[str] = []
    for number, point in enumerate(plan.points, start=1):
        say(f"sweep: point {number} of {len(plan.points)}: {point.name}")
        steps = [step for step in point.run.steps if step.phase in POINT_PHASES]
        try:
            status = run_in_turn(point.run, steps, run_file, point.overrides, force=force)
        except PhaseFailed as error:
            warn(f"{point.name}: {error}. The sweep continues with the other points")
            failed.append(point.name)
            continue
        if status:
            return status
    out = report_folder(plan.base)
    write_report(figures(plan), out)
    if failed:
        raise PhaseFailed(
            f"{len(failed)} of {counted(len(plan.points), 'point')} failed: {'; '.join(failed)}. "
            f"The report in {out} covers the others; run the same command to retry the failed "
            "points"
        )
    return 0


def report_folder(run: Run) -> Path:
    """The directory of a sweep's report."""
    return run.root / SWEEP / "report"


def figures(plan: SweepPlan) -> SweepFigures:
    """The figures of all points, with those of incomplete phases missing."""
    evaluate = plan.base.config.evaluate
    judged = evaluate is not None and evaluate.judge is not None
    return SweepFigures(
        run=plan.base.config.run.name,
        swept=plan.swept,
        measure="preferred" if judged else "accuracy",
        evaluated=evaluate is not None,
        points=tuple(sweep_point(point.run, plan.swept) for point in plan.points),
        tried_before=tuple(tried_before(plan.base, [point.name for point in plan.points])),
    )


def _points(run_file: Path, fixed: Sequence[str], swept: dict[str, list[str]]) -> Iterator[Point]:
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        overrides = (*fixed, *(f"{key}={value}" for key, value in chosen.items()))
        config = load_config(run_file, overrides)
        name = ",".join(f"{key.partition('.')[2]}={_slug(v)}" for key, v in chosen.items())
        yield Point(name, Run(config, point=name), overrides)


def _check_key(key: str, swept: dict[str, list[str]]) -> None:
    """Raise `ConfigError` for a key whose values need separate runs instead of points."""
    if key in swept:
        raise ConfigError(f"--set {key}: given twice; put all its values into one list")
    section = key.partition(".")[0]
    if section not in SWEPT_SECTIONS or "." not in key:
        raise ConfigError(
            f"{key} cannot be swept, only keys of `train` and `evaluate`: all points share one "
            "SFT model, one reference and one set of pairs. To vary those, make separate runs "
            "(with different run.name) and compare them with `dpo-dist compare`"
        )
    if key.startswith("evaluate.prompts"):
        raise ConfigError(
            f"{key} cannot be swept: points are compared on the same held-out prompts, and pairs "
            "that overlap with them were left out"
        )


def _slug(text: str) -> str:
    """A value as part of a directory name: 5.0e-6 becomes 5e-06, `{ipo: 1}` becomes ipo_1."""
    value = parse_yaml(text)
    shown = str(value) if isinstance(value, str | int | float) else text
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", shown).strip("_")
