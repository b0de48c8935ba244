"""One strength per arm from all pairwise verdicts, by the model of Bradley and Terry (1952).

P(a preferred to b) = expit(strength_a - strength_b). The model cannot represent circular
preferences; then the direct win rates are more informative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_dist.evaluation.logistic import LogisticFit, fit
from dpo_dist.evaluation.statistics import Floats

_TIED = "\0tied"  # not a possible prompt id


@dataclass(frozen=True)
class Game:
    """A verdict on one prompt, `worth` 1, 1/2 or 0 to `a` against `b`."""

    prompt_id: str
    a: str
    b: str
    worth: float


@dataclass(frozen=True)
class Strength:
    """An arm's log-odds against the average arm (the strengths add up to 0), with its 95 %
    interval, which is None if the prompts have no variance."""

    arm: str
    strength: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranking:
    """The arms, strongest first, from games on `n` prompts.

    `circular`: the majorities form a circle (a beats b beats c beats a). If there are no strengths,
    `note` is the reason: "not_connected" (some arms were not compared, not even indirectly),
    "all_ties" or "too_few" prompts.
    """

    n: int
    strengths: tuple[Strength, ...]
    circular: bool
    note: str = ""


def rank(games: Sequence[Game], arms: Sequence[str]) -> Ranking:
    """Strengths of `arms` (or of the policies of several rounds) by maximum likelihood.

    Ties count half. For regularisation, one prompt is added on which all compared pairs tie, so
    that an arm that always wins has a finite strength. The intervals are clustered by prompt, since
    the games of one prompt share its answers.
    """
    n = len({game.prompt_id for game in games})
    margin = np.zeros((len(arms), len(arms)))  # of the row's arm over the column's, from 0
    compared = np.zeros((len(arms), len(arms)))
    for game in games:
        margin[arms.index(game.a), arms.index(game.b)] += game.worth - 0.5
        compared[arms.index(game.a), arms.index(game.b)] = 1
    # Arms that beat each other in a circle are one strong component.
    circular = _components((margin > margin.T).astype(float), "strong") < len(arms)
    if _components(compared, "weak") != 1:
        return Ranking(n, (), circular, "not_connected")
    if all(game.worth == 0.5 for game in games):
        return Ranking(n, (), circular, "all_ties")
    fitted = _fit(games, arms) if n > 1 else None
    if fitted is None:
        return Ranking(n, (), circular, "too_few")
    # The first arm's strength is fixed at 0 in the fit; these contrasts centre all strengths.
    contrasts = (np.eye(len(arms)) - 1 / len(arms))[:, 1:]
    strengths = [
        Strength(arm, *fitted.interval(row)) for arm, row in zip(arms, contrasts, strict=True)
    ]
    return Ranking(n, tuple(sorted(strengths, key=lambda s: -s.strength)), circular)


def _fit(games: Sequence[Game], arms: Sequence[str]) -> LogisticFit | None:
    """The strengths of all arms but the first, relative to the first."""
    pairs = dict.fromkeys((game.a, game.b) for game in games)
    rows = [*games, *(Game(_TIED, a, b, 0.5) for a, b in pairs)]
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(g.prompt_id for g in rows))}
    x = np.zeros((len(rows), len(arms)))
    for row, game in enumerate(rows):
        x[row, arms.index(game.a)], x[row, arms.index(game.b)] = 1, -1
    y = np.array([game.worth for game in rows])
    clusters = np.array([prompts[game.prompt_id] for game in rows])
    return fit(x[:, 1:], y, clusters)


def _components(edges: Floats, connection: str) -> int:
    from scipy.sparse.csgraph import connected_components

    count, _ = connected_components(edges, directed=True, connection=connection)
    return int(count)
