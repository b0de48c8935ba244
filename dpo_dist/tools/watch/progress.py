"""How far a phase is, as its directory tells; every look reads only what is new."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, comb
from pathlib import Path
from typing import Any, Protocol

from dpo_dist.evaluation.comparison import HEADLINE
from dpo_dist.intervals import half_width
from dpo_dist.judging.canaries import RIGHT
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.judging.spend import Ledger, read_prices
from dpo_dist.storage.artifacts import FINGERPRINT, MANIFEST, read_json
from dpo_dist.storage.tails import LineCount, Tail, Watched


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units; a total that is not known yet is None, one that may turn out to be
    smaller is `at_most`. `figures` and `alarms` are lines to be shown below."""

    done: int
    total: int | None
    unit: str
    at_most: bool = False
    figures: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


class Follower(Protocol):
    """Looks at one phase again and again."""

    def look(self) -> Progress: ...


def follow(folder: Path) -> Follower:
    """The follower of a phase's directory; its name says which phase it is."""
    match folder.name:
        case "sample":
            return SamplingFollower(folder)
        case "judge":
            return JudgingFollower(folder)
        case "evaluate":
            return EvaluationFollower(folder)
        case "sft" | "train":
            return TrainingFollower(folder)
        case _:
            return UnmeasuredFollower()


class UnmeasuredFollower:
    """A phase that is over before anybody looks twice."""

    def look(self) -> Progress:
        return Progress(0, None, "")


class SamplingFollower:
    """Candidates in the journals of all shards, of the prompts' number times the slots'.

    Prompts that turn out to be too long are counted in the total, too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prompts = LineCount(folder / "prompts.jsonl")
        self._journals = Watched(folder, ["candidates*.journal.jsonl"])

    def look(self) -> Progress:
        self._journals.look()
        slots = len(section(self._folder, "sample").get("slots", ()))
        total = self._prompts.look() * slots
        return Progress(
            self._journals.records, total or None, "candidates", figures=_figures(self._journals)
        )


class JudgingFollower:
    """Ballots, of as many as there are at most: pairs of which nothing is asked, because an answer
    was cut off, say, are found out by the phase alone. Ballots on canaries are told beside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballots = BallotBox(folder)

    def look(self) -> Progress:
        settings = section(self._folder, "judge")
        sample = self._folder.with_name("sample")
        prompts = read_object(sample / MANIFEST).get("counts", {}).get("kept", 0)
        pairs = prompts * comb(len(section(sample, "sample").get("slots", ())), 2)
        each = (2 if settings.get("both_orders", True) else 1) + settings.get("repeat", 0.0)
        self._ballots.look()
        return self._ballots.progress(ceil(pairs * each) or None)


class EvaluationFollower:
    """Answers of all arms at all decodings; once they are there, what the judges say of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prompts = LineCount(folder / "prompts.jsonl")
        self._journals = Watched(folder, ["generations*.journal.jsonl"])
        self._ballots = BallotBox(folder)

    def look(self) -> Progress:
        settings = section(self._folder, "evaluate")
        arms = settings.get("arms", ())
        prompts = self._prompts.look()
        total = prompts * len(arms) * len(settings.get("decodings", ()))
        self._journals.look()
        self._ballots.look()
        if self._journals.records < total or not (total and self._ballots.count):
            return Progress(
                self._journals.records, total or None, "answers", figures=_figures(self._journals)
            )
        pairs = _pairs(settings) if settings.get("judge") is not None else 0
        each = 2 * pairs + len(arms) * len(settings.get("judge_scores", ()))
        return self._ballots.progress(prompts * each)


def _pairs(settings: Mapping[str, Any]) -> int:
    """How many pairs of arms the judge compares; in both orders each."""
    arms = settings.get("arms", ())
    if settings.get("pairwise") == "headline":
        return int(set(HEADLINE) <= set(arms))
    return comb(len(arms), 2)


class BallotBox:
    """What ballots say in sum: outcomes, and what they have cost where the price is known; and
    what is asked in batches, whose ballots come all at once when they end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail = Tail(folder / BALLOTS)
        self._batches: dict[tuple[Path, float], tuple[int, float]] = {}
        self._prices = read_prices(None)
        self._forget()

    def look(self) -> None:
        self._tail.look(self._take, self._forget)

    def progress(self, total: int | None) -> Progress:
        return Progress(self.count, total, "ballots", at_most=True, figures=self._figures())

    def _take(self, line: bytes) -> None:
        ballot = _object(line)
        if RIGHT in (ballot.get("first"), ballot.get("second")):
            self._canaries += 1
        else:
            self.count += 1
            self._outcomes[str(ballot.get("outcome", "unreadable"))] += 1
        usage = ballot.get("usage") or {}
        self._tokens += sum(usage.get(name, 0) for name in ("input_tokens", "output_tokens"))
        kind, _, rest = str(ballot.get("judge", "")).partition(":")
        if usage and kind == "claude":
            model = rest.rpartition(":")[0]
            if model not in self._ledgers:
                self._ledgers[model] = Ledger(self._prices.models.get(model))
            self._ledgers[model].add(usage)

    def _forget(self) -> None:
        self.count = self._canaries = self._tokens = 0
        self._outcomes: Counter[str] = Counter()
        self._ledgers: dict[str, Ledger] = {}

    def _figures(self) -> tuple[str, ...]:
        expected = (*("first", "second"), *map(str, range(1, 6)))
        words = [f"{self._canaries} on canaries"] if self._canaries else []
        words += [
            f"{n} {name}" for name, n in sorted(self._outcomes.items()) if name not in expected
        ]
        if self._ledgers:
            spent = [ledger.usd for ledger in self._ledgers.values()]
            known = sum(usd for usd in spent if usd is not None)
            words.append("cost unknown" if None in spent else f"${known:.2f} so far")
            words[-1] += f" (prices of {self._prices.as_of})" if None not in spent else ""
        elif self._tokens:
            words.append(f"{self._tokens} tokens")
        return (*((", ".join(words),) if words else ()), *self._at_the_provider())

    def _at_the_provider(self) -> tuple[str, ...]:
        """The batches that were sent and have not come back."""
        out = []
        for pattern in ("batches/*.json", "*/batches/*.json"):
            for path in self._folder.glob(pattern):
                if path.stem.isdigit() and not path.with_suffix(".results.jsonl").exists():
                    out.append(self._batch(path))
        if not out:
            return ()
        waited = duration(max(0.0, time.time() - min(sent_at for _, sent_at in out)))
        return (f"requests in batches: {sum(n for n, _ in out)}, the first sent {waited} ago",)

    def _batch(self, path: Path) -> tuple[int, float]:
        """(requests, when sent); a record may be of megabytes, and is read once."""
        version = path, path.stat().st_mtime
        if version not in self._batches:
            record = read_object(path)
            sent_at = float(record.get("sent_at", version[1]))
            self._batches[version] = len(record.get("keys", ())), sent_at
        return self._batches[version]


class TrainingFollower:
    """Steps, the last value of each metric, and the alarms."""

    SHOWN = (
        *(("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "accuracy")),
        *(("kl/per_token", "KL"), ("learning_rate", "lr"), ("grad_norm", "gradient")),
        *(("tokens_per_second", "tokens/s"), ("eval_loss", "validation loss")),
        *(("eval_rewards/margins", "margin"), ("eval_rewards/accuracies", "accuracy")),
    )
    ALARMS = 3

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail = Tail(folder / "metrics.jsonl")
        self._total: int | None = None
        self._step = 0
        self._forget()

    def look(self) -> Progress:
        self._tail.look(self._take, self._forget)
        if self._total is None:
            self._total = training_steps(self._folder)
        return Progress(
            self._step,
            self._total,
            "steps",
            figures=self._figures(),
            alarms=tuple(self._alarms[-self.ALARMS :]),
        )

    def _take(self, line: bytes) -> None:
        values = _object(line)
        if not isinstance(values.get("step"), int):
            return
        self._step = max(self._step, values["step"])
        if "alarm" in values:
            self._alarms.append(f"step {values['step']}: {values.get('message', values['alarm'])}")
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._last |= numbers

    def _forget(self) -> None:
        self._step = 0
        self._last: dict[str, float] = {}
        self._alarms: list[str] = []

    def _figures(self) -> tuple[str, ...]:
        train: list[str] = []
        validation: list[str] = []
        for key, label in self.SHOWN:
            if key in self._last:
                text = f"{label} {self._last[key]:.4g}"
                if f"{key}_se" in self._last:
                    text += f" ± {half_width(self._last[f'{key}_se']):.2g} (95 %)"
                (validation if key.startswith("eval_") else train).append(text)
        return tuple(", ".join(words) for words in (train, validation) if words)


def training_steps(folder: Path) -> int | None:
    """How many optimizer steps the training in a directory has; None before its rows are made."""
    import pyarrow
    import pyarrow.parquet

    settings = read_object(folder / "job.json").get("settings")
    rows = folder / "tokens" / "train.parquet"
    if settings is None:
        return None
    try:
        count = int(pyarrow.parquet.read_metadata(rows).num_rows)
    except (OSError, pyarrow.ArrowInvalid):
        return None
    return ceil(ceil(count / int(settings["global_batch_size"])) * float(settings["num_epochs"]))


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def section(folder: Path, name: str) -> dict[str, Any]:
    """A section of the run file as a phase's fingerprint has it; empty before it is written."""
    found: dict[str, Any] = read_object(folder / FINGERPRINT).get("config", {}).get(name) or {}
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: the phase may be just about to write it."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _figures(journals: Watched) -> tuple[str, ...]:
    """Of generation: what was cut off, and in how many journals it goes."""
    many = f"{len(journals.counts)} journals" if len(journals.counts) > 1 else ""
    words = ", ".join(word for word in (journals.note, many) if word)
    return (words,) if words else ()
