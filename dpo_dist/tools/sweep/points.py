"""A sweep: trainings that differ in a few settings, on the same pairs, on the same prompts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dpo_dist.config import Config
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError, PhaseFailed
from dpo_dist.phases.pipeline import check_batches, run_in_turn
from dpo_dist.reporting.evaluation import evaluation_figures
from dpo_dist.reporting.training import training_figures
from dpo_dist.runs.directories import POINT_PHASES, SWEEP, Step, phase_dir, phases_of, run_root
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST, read_json
from dpo_dist.system.console import counted, say, warn
from dpo_dist.tools.sweep.show import write_report

SWEPT_SECTIONS = ("train", "evaluate")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Point:
    """One training of a sweep: its name, the overrides that make it, the whole configuration."""

    name: str
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class SweepPlan:
    """What all points share, and the points. `swept` are the keys that differ."""

    base: Config
    fixed: tuple[str, ...]
    swept: tuple[str, ...]
    points: tuple[Point, ...]


def plan_sweep(run_file: Path, overrides: Sequence[str]) -> SweepPlan:
    """The points of a sweep: the product of the overrides with several values, those with one
    value in all of them. Raises `ConfigError` for what cannot be swept."""
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
    base = load_config(run_file, fixed)
    if not swept:
        raise ConfigError(
            "nothing to sweep: give a key several values, e.g. --set train.beta=0.03,0.1,0.3"
        )
    if base.run.point is not None:
        raise ConfigError("run.point is set by the sweep; leave it out")
    if base.rounds is not None:
        raise ConfigError("a sweep covers a single round; set rounds: null")
    points = tuple(_points(run_file, fixed, swept))
    names = [point.name for point in points]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"the point {sorted(twice)[0]} is listed twice")
    return SweepPlan(base, tuple(fixed), tuple(swept), points)


def split_values(text: str) -> list[str]:
    """Cut at the commas that lie in no brackets and no quotes."""
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
    """Do the phases that all points share, then every point, each phase in a process of its own;
    then the report. Returns the exit code.

    Raises `PhaseFailed` where points failed, once the others are done and reported.
    """
    for point in plan.points:
        check_batches(point.config)
    phases = phases_of(plan.base)
    shared = [Step(phase) for phase in phases if phase not in POINT_PHASES]
    if status := run_in_turn(shared, run_file, plan.fixed, force=force):
        return status
    failed: list[str] = []
    for number, point in enumerate(plan.points, start=1):
        say(f"sweep: point {number} of {len(plan.points)}: {point.name}")
        own = [Step(phase) for phase in phases_of(point.config) if phase in POINT_PHASES]
        try:
            status = run_in_turn(own, run_file, point.overrides, force=force)
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


def report_folder(config: Config) -> Path:
    """Where a sweep's report is written."""
    return run_root(config) / SWEEP / "report"


def figures(plan: SweepPlan) -> dict[str, Any]:
    """What the report shows, the content of sweep.json. A point that is not complete has no
    figures."""
    judged = plan.base.evaluate is not None and plan.base.evaluate.judge is not None
    points = [
        {
            "point": point.name,
            "settings": {key: _setting(point.config, key) for key in plan.swept},
            "training": _of(point.config, "train", training_figures),
            "evaluation": _of(point.config, "evaluate", evaluation_figures),
            "report": _of(point.config, "report", _beside_the_sweep_s),
        }
        for point in plan.points
    ]
    return {
        "run": plan.base.run.name,
        "swept": list(plan.swept),
        "measure": "preferred" if judged else "accuracy",
        "evaluated": plan.base.evaluate is not None,
        "points": points,
        "tried_before": _tried_before(plan),
    }


def _of(config: Config, phase: str, read: Callable[[Path], Found]) -> Found | None:
    folder = phase_dir(config, phase)
    return read(folder) if (folder / MANIFEST).exists() else None


def _beside_the_sweep_s(report: Path) -> str:
    return f"../{report.parent.name}/report/"


def _tried_before(plan: SweepPlan) -> list[str]:
    """The complete points of earlier sweeps of this run, evaluated on the same prompts (or, where
    nothing is evaluated, on the same validation pairs): they were looks at the same data."""
    phase, what = ("evaluate", "prompts") if plan.base.evaluate is not None else ("train", "pairs")
    complete: dict[str, Any] = {
        path.parent.parent.name: read_json(path.with_name(FINGERPRINT))["inputs"][what]
        for path in sorted((run_root(plan.base) / SWEEP).glob(f"*/{phase}/{MANIFEST}"))
    }
    own = [point.name for point in plan.points]
    seen = [complete[name] for name in own if name in complete]
    return [name for name, data in complete.items() if name not in own and data in seen]


def _points(run_file: Path, fixed: Sequence[str], swept: dict[str, list[str]]) -> Iterator[Point]:
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        name = ",".join(f"{key.partition('.')[2]}={_word(v)}" for key, v in chosen.items())
        overrides = (*fixed, *(f"{key}={value}" for key, value in chosen.items()))
        overrides = (*overrides, f"run.point={name}")
        yield Point(name, overrides, load_config(run_file, overrides))


def _check_key(key: str, swept: dict[str, list[str]]) -> None:
    """Raises `ConfigError` for a key whose values would make other runs and not other points."""
    if key in swept:
        raise ConfigError(f"--set {key}: given twice; put all its values into one list")
    section = key.partition(".")[0]
    if section not in SWEPT_SECTIONS or "." not in key:
        raise ConfigError(
            f"{key} cannot be swept, only keys of `train` and `evaluate`: all points share one "
            "SFT model, one reference and one set of pairs. To vary those, make separate runs "
            "(set another run.name) and compare them with `dpo-dist compare`"
        )
    if key.startswith("evaluate.prompts"):
        raise ConfigError(
            f"{key} cannot be swept: points are compared on the same held-out prompts, and pairs "
            "that overlap with them were left out"
        )


def _setting(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part)
    return value


def _word(text: str) -> str:
    """A value as a part of a directory's name: 5.0e-6 is 5e-06, `{ipo: 1}` is ipo_1."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with suppress(ValueError):  # YAML reads 5e-6, without a dot, as a string
            value = float(value)
    shown = str(value) if isinstance(value, str | int | float) else text
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", shown).strip("_")
