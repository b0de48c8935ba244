"""Whether the judge is fit to label: its canaries, and the card that they make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dpo_dist.config import Canaries, Config
from dpo_dist.errors import JudgeFailed
from dpo_dist.intervals import wilson
from dpo_dist.judging.canaries import DRAWN, LABELS, Canary, CanaryResult, marks
from dpo_dist.judging.judge import Judge
from dpo_dist.judging.spend import Ledger
from dpo_dist.phases.asking import ask
from dpo_dist.storage.artifacts import PhaseDirectory
from dpo_dist.system.console import say

SHOWN = 3  # names of failed canaries in a line


def most_requests(settings: Canaries, own: Sequence[Canary]) -> int:
    """How many ballots the canaries take at most, both orders counted."""
    return 2 * (settings.per_kind * len(DRAWN) + len(own))


def examine(
    judge: Judge,
    ledger: Ledger,
    canaries: Sequence[Canary],
    out: PhaseDirectory,
    config: Config,
    *,
    approve: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Ask the judge about its canaries, in both orders, and return its card: a row per kind.

    Raises `JudgeFailed` where it is not fit: the share of all that passed is too low, or that of
    one kind, its whole interval. Kinds that the run file accepts do not count.
    """
    assert config.judge is not None and config.judge.canaries is not None
    settings = config.judge.canaries
    if not canaries:
        return []
    contests = [canary.contest for canary in canaries]
    judged = ask(judge, ledger, contests, out, config, approve=approve, name="canaries")
    found = marks(canaries, judged.votes)
    card = [_row(mark, settings) for mark in found]
    for mark, row in zip(found, card, strict=True):
        names = ", ".join(mark.failed[:SHOWN]) + (", ..." if len(mark.failed) > SHOWN else "")
        say(f"canaries, {_counted(row)}: {row['status']}" + (f" ({names})" if names else ""))
    _check(card, settings)
    return card


def _row(mark: CanaryResult, settings: Canaries) -> dict[str, Any]:
    if _enough(mark.passed, mark.n, settings):
        status = "passed"
    else:
        status = "accepted" if mark.kind in settings.accept else "failed"
    return {
        "kind": mark.kind,
        "label": LABELS[mark.kind],
        "passed": mark.passed,
        "not_compared": mark.not_compared,
        **asdict(wilson(mark.passed, mark.n)),
        "status": status,
    }


def _check(card: Sequence[Mapping[str, Any]], settings: Canaries) -> None:
    """That most of all pass is not enough: a kind with many canaries would hide another of which
    all fail."""
    counted = [row for row in card if row["kind"] not in settings.accept]
    n, passed = (sum(row[key] for row in counted) for key in ("n", "passed"))
    hopeless = [r for r in counted if r["high"] is not None and r["high"] < settings.pass_rate]
    if _enough(passed, n, settings) and not hopeless:
        return
    failing = [row for row in counted if row["status"] == "failed"]
    kinds = ",".join([*settings.accept, *(row["kind"] for row in failing)])
    raise JudgeFailed(
        f"the judge passed {passed} of {n} canaries ({100 * settings.pass_rate:g} % required, and "
        f"no kind far below that); failed: {'; '.join(map(_counted, failing))}. No pairs were "
        "written. The ballots are kept, with the judge's reasoning, and are not paid for again. "
        "Use a stronger judge or a better rubric (and pass --force), or accept the failing kinds "
        f"by running the same command again with --set 'judge.canaries.accept=[{kinds}]'"
    )


def _enough(passed: int, n: int, settings: Canaries) -> bool:
    return n == 0 or passed / n >= settings.pass_rate


def _counted(row: Mapping[str, Any]) -> str:
    silent = f" ({row['not_compared']} without a comparison)" if row["not_compared"] else ""
    return f"{row['kind']} {row['passed']} of {row['n']}{silent}"
