"""One strength per arm from all pairwise verdicts: the model of Bradley and Terry (1952).

P(a preferred to b) = expit(strength_a - strength_b). It summarises; where verdicts form a circle it
cannot be right, and the direct win rates say more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpo_dist.evaluation.logistic import fit
from dpo_dist.evaluation.statistics import Floats

_TIED = "\0tied"  # no prompt of a run file has such an id


@dataclass(frozen=True)
class Game:
    """What the verdict on one prompt is worth to `a` against `b`: 1, 1/2 or 0."""

    prompt_id: str
    a: str
    b: str
    worth: float


@dataclass(frozen=True)
class Strength:
    """An arm's log-odds against the average arm (the strengths add up to 0), with its 95 %
    interval (None where the prompts leave it no variance)."""

    arm: str
    strength: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranking:
    """The arms, strongest first, from games on `n` prompts.

    `circular`: the direct majorities form a circle (a beats b beats c beats a). Without strengths,
    `note` says why: "not_connected" (some arms were never compared, not even through others),
    "all_ties", or "too_few" prompts.
    """

    n: int
    strengths: tuple[Strength, ...]
    circular: bool
    note: str = ""


def rank(games: Sequence[Game], arms: Sequence[str]) -> Ranking:
    """Strengths of `arms` (or of checkpoints of several rounds) by maximum likelihood.

    Ties are halves. Regularised by one prompt more on which every pair that was compared is tied,
    so that an arm that always wins has a finite strength. The intervals are clustered by prompt:
    the games of one prompt share its answers.
    """
    n, circular = len({game.prompt_id for game in games}), _circular(games, arms)
    if not _connected(games, arms):
        return Ranking(n, (), circular, "not_connected")
    if all(game.worth == 0.5 for game in games):
        return Ranking(n, (), circular, "all_ties")
    if n < 2:
        return Ranking(n, (), circular, "too_few")
    pairs = dict.fromkeys((game.a, game.b) for game in games)
    rows = [*games, *(Game(_TIED, a, b, 0.5) for a, b in pairs)]
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(g.prompt_id for g in rows))}
    x = np.zeros((len(rows), len(arms)))
    for row, game in enumerate(rows):
        x[row, arms.index(game.a)], x[row, arms.index(game.b)] = 1, -1
    y = np.array([game.worth for game in rows])
    clusters = np.array([prompts[game.prompt_id] for game in rows])
    # Only differences count: the first arm is held at 0, then all are centred.
    fitted = fit(x[:, 1:], y, clusters)
    if fitted is None:
        return Ranking(n, (), circular, "too_few")
    centred = (np.eye(len(arms)) - 1 / len(arms))[:, 1:]
    strengths = [
        Strength(arm, *fitted.interval(row)) for arm, row in zip(arms, centred, strict=True)
    ]
    return Ranking(n, tuple(sorted(strengths, key=lambda s: -s.strength)), circular)


def _components(edges: Floats, connection: str) -> int:
    from scipy.sparse.csgraph import connected_components

    count, _ = connected_components(edges, directed=True, connection=connection)
    return int(count)


def _connected(games: Sequence[Game], arms: Sequence[str]) -> bool:
    edges = np.zeros((len(arms), len(arms)))
    for game in games:
        edges[arms.index(game.a), arms.index(game.b)] = 1
    return _components(edges, "weak") == 1


def _circular(games: Sequence[Game], arms: Sequence[str]) -> bool:
    """Whether the graph of who beats whom has a circle: a strong component of several arms."""
    margin = np.zeros((len(arms), len(arms)))
    for game in games:
        margin[arms.index(game.a), arms.index(game.b)] += game.worth - 0.5
    return _components((margin > margin.T).astype(float), "strong") < len(arms)
