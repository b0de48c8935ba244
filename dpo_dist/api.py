"""The Python API, which `dpo_dist` exports: the same run files and directories as the command line.

run = dpo_dist.load_run("run.yaml", {"train.beta": 0.3})
dpo_dist.run_phases(run)
pairs = dpo_dist.read_pairs(run)
report = dpo_dist.read_report(run)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue, TypeAdapter, ValidationError

from dpo_dist.config import Config, JudgeConfig
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import INTERRUPTED, ConfigError, DataError, JudgeFailed, UserError
from dpo_dist.judging.build import build_judge
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import BallotSummary, orders, reconcile
from dpo_dist.judging.spend import open_ledger
from dpo_dist.phases.pipeline import check_before_work, run_in_turn
from dpo_dist.reporting.report import ReportData
from dpo_dist.runs.finished import find_run
from dpo_dist.runs.run import Run
from dpo_dist.storage.figures import read_figures
from dpo_dist.storage.records import Message, PreferencePair, Prompt, VerdictOutcome
from dpo_dist.system.console import YES

if TYPE_CHECKING:
    from datasets import Dataset

Preferred = Literal["a", "b"] | VerdictOutcome


@dataclass(frozen=True)
class LoadedRun:
    """A run file that was read. `overrides` are those of `--set`, as KEY=VALUE."""

    file: Path
    overrides: tuple[str, ...]
    run: Run

    @property
    def config(self) -> Config:
        """All settings, with defaults: `config.train.beta`."""
        return self.run.config

    @property
    def folder(self) -> Path:
        """The run's directory, with one directory per phase."""
        return self.run.root

    @property
    def phases(self) -> list[str]:
        """The phases of the run file, in order."""
        return self.run.phases


def load_run(run_file: Path | str, overrides: Mapping[str, JsonValue] | None = None) -> LoadedRun:
    """Read a run file. `overrides` replaces keys: `{"train.beta": 0.3}`. Raises `ConfigError`,
    which names the key."""
    given = tuple(f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items())
    return LoadedRun(Path(run_file), given, Run(load_config(Path(run_file), given)))


def run_phases(run: LoadedRun, *phases: str, force: bool = False, yes: bool = False) -> None:
    """Run the phases with these names, or all of them, as `dpo-dist run` does: in order, each in
    its own process, in every round; what is complete is skipped, what was interrupted is resumed.

    `force` moves the directories of phases whose settings changed aside. `yes` approves the cost of
    paid judges; without it, the approval is asked for on the terminal. Raises `UserError` if a
    phase was refused, and `DpoDistError` if it failed; its message is on stderr.
    """
    if unknown := [name for name in phases if name not in run.phases]:
        raise UserError(f"the run file does not configure the phase `{unknown[0]}`")
    check_before_work(run.run)
    steps = [step for step in run.run.steps if not phases or step.phase in phases]
    before = os.environ.get(YES)
    if yes:
        os.environ[YES] = "1"  # inherited by the processes of the phases
    try:
        status = run_in_turn(run.run, steps, run.file, run.overrides, force=force)
    finally:
        if yes and before is None:
            del os.environ[YES]
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise UserError("a phase was refused; its message is on stderr")


def prefer(
    judge: JudgeConfig | Mapping[str, JsonValue],
    prompt: str | Sequence[Mapping[str, str]],
    a: str,
    b: str,
    *,
    reference: Mapping[str, JsonValue] | None = None,
) -> Preferred:
    """Ask a judge which of two answers to a prompt is better, in both orders.

    `judge` is a section such as `run.config.judge.judge`, or its keys, `{"type": "metric", ...}`,
    with paths relative to the working directory. `prompt` is a text or messages with `role` and
    `content`; `reference` is what metrics compare with.

    Returns "a" or "b" if both orders prefer it, "tie", "inconsistent" if the orders disagree, or
    the reason why there is no verdict, such as "refusal". A paid judge is paid for two requests,
    without confirmation. Raises `ConfigError` for a judge that cannot answer at once.
    """
    section = _judge_section(judge)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = tuple(Message.model_validate(dict(turn)) for turn in turns)
    asked = Prompt(id="-", messages=messages, reference=dict(reference or {}))
    comparison = Comparison(asked, "a", "b", a, b)
    with TemporaryDirectory() as folder:
        built, ledger = build_judge(section, Path(folder)), open_ledger(section)
        built.check()
        questions = orders(comparison, both_orders=True, seed=0)
        wanted = {built.key(question): question for question in questions}
        ballots = {
            key: built.ballot(question, reason)
            for key, question in wanted.items()
            if (reason := built.why_not_asked(question))
        }
        left = [question for key, question in wanted.items() if key not in ballots]
        for group in built.compare(ledger.affordable(left)):
            ballots |= {ballot.key: ballot for ballot in group}
    if missing := len(wanted.keys() - ballots.keys()):
        raise JudgeFailed(ledger.limit_reached(missing))
    found = [BallotSummary.of(ballots[built.key(question)], question) for question in questions]
    verdict = reconcile(comparison, found)
    if verdict.outcome != "preferred":
        return verdict.outcome
    return "a" if verdict.preferred == "a" else "b"


def _judge_section(judge: JudgeConfig | Mapping[str, JsonValue]) -> JudgeConfig:
    try:
        section: JudgeConfig = TypeAdapter(JudgeConfig).validate_python(
            judge, context={"folder": Path.cwd()}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "judge"
        raise ConfigError(f"{key}: {problem['msg']}") from None
    if section.type == "human":
        raise ConfigError("prefer: people fill in a sheet, which takes longer than a call")
    if section.sent == "batch":
        return section.model_copy(update={"transport": "online"})
    return section


def read_pairs(
    run: LoadedRun | Path | str, split: Literal["train", "validation"] = "train"
) -> Dataset:
    """The preference pairs that a run trains on, or those that it validates on.

    `run` is a run that was loaded, or the directory of a finished run. The columns are `prompt_id`
    and TRL's `prompt`, `chosen` and `rejected`, lists of messages. With several rounds, these are
    the pairs of the last one. Raises `DataError` if there are none yet.
    """
    from datasets import Dataset

    from dpo_dist.phases.train import read_pairs

    at = run.run if isinstance(run, LoadedRun) else _run_of(Path(run))
    at = at.rounds()[-1] if at.config.rounds else at
    if at.config.preferences.source == "judged":
        at.require("judge")
    found = read_pairs(at)
    pairs = found.train if split == "train" else found.validation
    return Dataset.from_list([_row(pair) for pair in pairs])


def _run_of(folder: Path) -> Run:
    """The run of a finished run's directory, wherever that is now."""
    config = find_run(folder).config
    moved = {"output_dir": folder.resolve().parent, "name": folder.resolve().name}
    return Run(config.model_copy(update={"run": config.run.model_copy(update=moved)}))


def _row(pair: PreferencePair) -> dict[str, object]:
    return {
        "prompt_id": pair.prompt_id,
        "prompt": [message.model_dump() for message in pair.prompt],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def read_report(run: LoadedRun | Path | str) -> ReportData:
    """The figures of a run's report, as in report.json: `report.outcome`, `report.comparison`,
    `report.training`. `run` is a run that was loaded, or a run's directory. Raises `DataError` if
    there is no report."""
    folder = run.folder if isinstance(run, LoadedRun) else Path(run)
    path = folder / "report" / "report.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file. Run the phase `report` with the format json")
    return read_figures(path, ReportData)
