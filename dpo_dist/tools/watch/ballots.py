"""The ballots of a phase that is judging: outcomes, costs, and batches at the provider."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from dpo_dist.config import BilledJudge, Resource
from dpo_dist.errors import UserError
from dpo_dist.judging.canaries import RIGHT
from dpo_dist.judging.judge import BALLOTS
from dpo_dist.judging.spend import Ledger, price_of
from dpo_dist.storage.figures import Figures
from dpo_dist.storage.tails import Tail

# Normal outcomes of comparisons and scores, which are not shown.
_NORMAL = frozenset({"first", "second", *map(str, range(1, 6))})


class _BallotKeys(Figures):
    first: str = ""
    second: str = ""
    outcome: str = "unreadable"
    judge: str = ""
    usage: dict[str, int] = Field(default_factory=dict)


class _BatchKeys(Figures):
    keys: tuple[str, ...] = ()
    sent_at: float | None = None


class BallotBox:
    """Counts the ballots of a phase and their cost. `judges` returns the sections of its judges."""

    def __init__(self, folder: Path, judges: Callable[[], Sequence[Resource]]) -> None:
        self._folder = folder
        self._judges = judges
        self._tail = Tail(folder / BALLOTS)
        self._batches: dict[tuple[Path, float], tuple[int, float]] = {}
        self._forget()

    def _forget(self) -> None:
        self.count = self._canaries = self._tokens = 0
        self._outcomes: Counter[str] = Counter()
        self._ledgers: dict[str, Ledger] = {}
        self._as_of = ""

    def look(self) -> None:
        self._tail.look(self._take, self._forget)

    def _take(self, line: bytes) -> None:
        try:
            ballot = _BallotKeys.model_validate_json(line)
        except ValidationError:
            ballot = _BallotKeys()
        if RIGHT in (ballot.first, ballot.second):
            self._canaries += 1
        else:
            self.count += 1
            self._outcomes[ballot.outcome] += 1
        if not ballot.usage:
            return
        self._tokens += sum(ballot.usage.get(name, 0) for name in ("input_tokens", "output_tokens"))
        if ballot.judge not in self._ledgers:
            self._ledgers[ballot.judge] = self._open(ballot.judge)
        self._ledgers[ballot.judge].add(ballot.usage)

    def _open(self, identity: str) -> Ledger:
        """A ledger for the judge with this identity, with its price if that is known."""
        for judge in self._judges():
            if isinstance(judge, BilledJudge) and identity.startswith(f"{judge.name}:"):
                try:
                    price, as_of = price_of(judge)
                except UserError:  # the price table is not on this machine
                    break
                self._as_of = as_of or self._as_of
                return Ledger(price)
        return Ledger()

    def figures(self) -> tuple[str, ...]:
        """Lines about the outcomes, the costs and the batches."""
        counts = [f"{self._canaries} on canaries"] if self._canaries else []
        counts += [
            f"{n} {name}" for name, n in sorted(self._outcomes.items()) if name not in _NORMAL
        ]
        costs = self._costs() if self._ledgers else []
        line = ", ".join([*counts, *costs])
        return tuple(text for text in (line, self._batches_sent()) if text)

    def _costs(self) -> list[str]:
        spent = [ledger.usd for ledger in self._ledgers.values()]
        if None in spent:
            return [*([f"{self._tokens} tokens"] if self._tokens else []), "cost unknown"]
        known = f"${sum(usd for usd in spent if usd is not None):.2f} so far"
        return [f"{known} (prices of {self._as_of})" if self._as_of else known]

    def _batches_sent(self) -> str:
        """The batches that were sent and have no results yet; empty if there are none."""
        sent = [
            self._batch(path)
            for pattern in ("batches/*.json", "*/batches/*.json")
            for path in self._folder.glob(pattern)
            if path.stem.isdigit() and not path.with_suffix(".results.jsonl").exists()
        ]
        if not sent:
            return ""
        waited = duration(max(0.0, time.time() - min(sent_at for _, sent_at in sent)))
        return f"requests in batches: {sum(n for n, _ in sent)}, the first sent {waited} ago"

    def _batch(self, path: Path) -> tuple[int, float]:
        """(requests, time of sending). A record may be megabytes long, so it is read only once."""
        version = path, path.stat().st_mtime
        if version not in self._batches:
            try:
                record = _BatchKeys.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                record = _BatchKeys()
            sent_at = version[1] if record.sent_at is None else record.sent_at
            self._batches[version] = len(record.keys), sent_at
        return self._batches[version]


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
