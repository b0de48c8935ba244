"""The progress of a phase, from the files in its directory. Every look reads only new data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, comb
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import JsonValue

from dpo_dist.config import Config, JudgeConfig, Resource, ScorerConfig
from dpo_dist.errors import DataError
from dpo_dist.evaluation.scores import HEADLINE
from dpo_dist.intervals import half_width
from dpo_dist.runs.manifests import SampleManifest
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST
from dpo_dist.storage.figures import Figures, read_figures
from dpo_dist.storage.tails import LineCount, Tail, Watched
from dpo_dist.tools.watch.ballots import BallotBox
from dpo_dist.training.metrics_log import MetricLine

F = TypeVar("F")


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units. A total of None is unknown; with `at_most` it is an upper bound.
    `figures` and `alarms` are lines to show below."""

    done: int
    total: int | None
    unit: str
    at_most: bool = False
    figures: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


UNMEASURED = Progress(0, None, "")


def follow(folder: Path, config: Config | None) -> Callable[[], Progress]:
    """A function that reads the progress of the phase in a directory, which has the phase's name.
    `config` is the run file, if it is known."""
    match folder.name:
        case "sample":
            return SamplingFollower(folder).look
        case "judge":
            return JudgingFollower(folder, config).look
        case "evaluate":
            return EvaluationFollower(folder, config).look
        case "sft" | "train":
            return TrainingFollower(folder).look
        case _:
            return lambda: UNMEASURED


class SamplingFollower:
    """Counts the candidates in the journals of all shards. The total is prompts times slots,
    including prompts that will be dropped as too long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prompts = LineCount(folder / "prompts.jsonl")
        self._journals = Watched(folder, ["candidates*.journal.jsonl"])

    def look(self) -> Progress:
        self._journals.look()
        total = self._prompts.look() * len(sections(self._folder).sample.slots)
        figures = _generation_figures(self._journals)
        return Progress(self._journals.records, total or None, "candidates", figures=figures)


class JudgingFollower:
    """Counts the ballots, without those on canaries. The total is an upper bound: the phase does
    not ask about every pair (for example if an answer was cut off)."""

    def __init__(self, folder: Path, config: Config | None) -> None:
        self._folder = folder
        self._ballots = BallotBox(folder, lambda: _judges(folder, config))

    def look(self) -> Progress:
        keys = sections(self._folder).judge
        sample = self._folder.with_name("sample")
        manifest = read_or_none(sample / MANIFEST, SampleManifest)
        prompts = manifest.counts.kept if manifest is not None else 0
        pairs = prompts * comb(len(sections(sample).sample.slots), 2)
        each = (2 if keys.both_orders else 1) + keys.repeat
        self._ballots.look()
        return _ballot_progress(self._ballots, ceil(pairs * each) or None)


class EvaluationFollower:
    """Counts the answers of all arms and decodings and, once they are complete, the ballots."""

    def __init__(self, folder: Path, config: Config | None) -> None:
        self._folder = folder
        self._prompts = LineCount(folder / "prompts.jsonl")
        self._journals = Watched(folder, ["generations*.journal.jsonl"])
        self._ballots = BallotBox(folder, lambda: _judges(folder, config))

    def look(self) -> Progress:
        keys = sections(self._folder).evaluate
        prompts = self._prompts.look()
        total = prompts * len(keys.arms) * len(keys.decodings)
        self._journals.look()
        self._ballots.look()
        if self._journals.records < total or not (total and self._ballots.count):
            figures = _generation_figures(self._journals)
            return Progress(self._journals.records, total or None, "answers", figures=figures)
        each = 2 * keys.compared_pairs + len(keys.arms) * len(keys.judge_scores)
        return _ballot_progress(self._ballots, prompts * each)


class TrainingFollower:
    """Reads the step, the last value of each metric, and the alarms."""

    SHOWN: ClassVar = {
        "loss": "loss",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
        "kl/per_token": "KL",
        "learning_rate": "lr",
        "grad_norm": "gradient",
        "tokens_per_second": "tokens/s",
        "eval_loss": "validation loss",
        "eval_rewards/margins": "margin",
        "eval_rewards/accuracies": "accuracy",
    }
    ALARMS = 3

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail = Tail(folder / "metrics.jsonl")
        self._total: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._step = 0
        self._last: dict[str, float] = {}
        self._alarms: list[str] = []

    def look(self) -> Progress:
        self._tail.look(self._take, self._forget)
        if self._total is None:
            self._total = training_steps(self._folder)
        alarms = tuple(self._alarms[-self.ALARMS :])
        return Progress(self._step, self._total, "steps", figures=self._figures(), alarms=alarms)

    def _take(self, line: bytes) -> None:
        try:
            metrics = MetricLine.parse(line)
        except ValueError:
            return
        self._step = max(self._step, metrics.step)
        if metrics.alarm:
            self._alarms.append(f"step {metrics.step}: {metrics.message or metrics.alarm}")
        self._last |= metrics.values

    def _figures(self) -> tuple[str, ...]:
        train: list[str] = []
        validation: list[str] = []
        for key, label in self.SHOWN.items():
            if key in self._last:
                text = f"{label} {self._last[key]:.4g}"
                if f"{key}_se" in self._last:
                    text += f" ± {half_width(self._last[f'{key}_se']):.2g} (95 %)"
                (validation if key.startswith("eval_") else train).append(text)
        return tuple(", ".join(words) for words in (train, validation) if words)


# The keys that followers read from a phase's files. They have defaults, because a fingerprint lacks
# the keys that may change on resume.


class _SampleKeys(Figures):
    slots: tuple[JsonValue, ...] = ()


class _JudgeKeys(Figures):
    both_orders: bool = True
    repeat: float = 0.0
    judge: JudgeConfig | None = None


class _ScorerKeys(Figures):
    judge: ScorerConfig


class _EvaluateKeys(Figures):
    arms: tuple[JsonValue, ...] = ()  # names, or sections
    decodings: tuple[JsonValue, ...] = ()
    pairwise: str = "all"
    judge: JudgeConfig | None = None
    judge_scores: tuple[_ScorerKeys, ...] = ()

    @property
    def compared_pairs(self) -> int:
        """How many pairs of arms the judge compares, each in both orders."""
        if self.judge is None:
            return 0
        if self.pairwise == "headline":
            names = {str(arm["name"] if isinstance(arm, dict) else arm) for arm in self.arms}
            return int(set(HEADLINE) <= names)
        return comb(len(self.arms), 2)


class _Sections(Figures):
    sample: _SampleKeys = _SampleKeys()
    judge: _JudgeKeys = _JudgeKeys()
    evaluate: _EvaluateKeys = _EvaluateKeys()


class _Fingerprint(Figures):
    config: _Sections = _Sections()


class _JobSettings(Figures):
    global_batch_size: int
    num_epochs: float


class _Job(Figures):
    settings: _JobSettings


def sections(folder: Path) -> _Sections:
    """The run file's sections in a phase's fingerprint; empty if there is none yet."""
    fingerprint = read_or_none(folder / FINGERPRINT, _Fingerprint)
    return fingerprint.config if fingerprint is not None else _Sections()


def training_steps(folder: Path) -> int | None:
    """The number of optimizer steps of a training; None until its rows are written."""
    import pyarrow
    import pyarrow.parquet

    job = read_or_none(folder / "job.json", _Job)
    if job is None:
        return None
    try:
        metadata = pyarrow.parquet.read_metadata(folder / "tokens" / "train.parquet")
    except (OSError, pyarrow.ArrowInvalid):
        return None
    steps = ceil(int(metadata.num_rows) / job.settings.global_batch_size)
    return ceil(steps * job.settings.num_epochs)


def read_or_none(path: Path, kind: type[F]) -> F | None:
    """The figures in a file; None if it is missing, incomplete or of another version."""
    try:
        return read_figures(path, kind)
    except (OSError, DataError):
        return None


def _judges(folder: Path, config: Config | None) -> Sequence[Resource]:
    """The judges of a phase: from the run file, or from the fingerprint with default prices."""
    if config is not None:
        return config.judges
    judge, evaluate = sections(folder).judge, sections(folder).evaluate
    judges: list[Resource] = [section.judge for section in (judge, evaluate) if section.judge]
    return [*judges, *(scorer.judge for scorer in evaluate.judge_scores)]


def _ballot_progress(ballots: BallotBox, total: int | None) -> Progress:
    return Progress(ballots.count, total, "ballots", at_most=True, figures=ballots.figures())


def _generation_figures(journals: Watched) -> tuple[str, ...]:
    """A line with the share of cut-off answers and the number of journals, if there are several."""
    count = f"{len(journals.counts)} journals" if len(journals.counts) > 1 else ""
    line = ", ".join(text for text in (journals.note, count) if text)
    return (line,) if line else ()
