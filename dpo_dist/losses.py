"""What is known of TRL's preference losses: which settings they use, and their value at the start.

The losses themselves are TRL's (`DPOTrainer._compute_loss`). Before the first step policy and
reference are one model, every log-ratio is 0, and each loss has a value that can be computed by
hand; it is what tells a wrong reference from a right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

LossName = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

LN2 = math.log(2)


@dataclass(frozen=True)
class Loss:
    """One loss. `at_start(beta, label_smoothing)` is its value at log-ratios of 0.

    - `smooths`: it reads `label_smoothing`.
    - `differs`: it sees the log-ratios only through chosen - rejected, which is what an
      f-divergence generalises (Wang et al. 2024, arXiv 2309.16240).
    - `sums`: beta multiplies log-ratios summed over tokens, so that values above 1 saturate it.
    - `sorts`: it compares sorted batches, so that it depends on the micro-batch.
    """

    at_start: Callable[[float, float], float]
    smooths: bool = False
    differs: bool = False
    sums: bool = True
    sorts: bool = False


def _exo(beta: float, smoothing: float) -> float:
    return -LN2 - 0.5 * (math.log1p(-smoothing) + math.log(smoothing))


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(lambda beta, eps: LN2, differs=True),
    "sigmoid_norm": Loss(lambda beta, eps: LN2, differs=True, sums=False),
    "hinge": Loss(lambda beta, eps: 1.0, differs=True),
    "ipo": Loss(lambda beta, eps: (1 / (2 * beta)) ** 2, differs=True, sums=False),
    "robust": Loss(lambda beta, eps: LN2, smooths=True, differs=True),
    "exo_pair": Loss(_exo, smooths=True, differs=True),
    "nca_pair": Loss(lambda beta, eps: 2 * LN2),
    "bco_pair": Loss(lambda beta, eps: 2 * LN2),
    "sppo_hard": Loss(lambda beta, eps: 2 * (0.5 / beta) ** 2, sums=False),
    "aot": Loss(lambda beta, eps: LN2, smooths=True, sorts=True),
    "aot_unpaired": Loss(lambda beta, eps: LN2, smooths=True, sorts=True),
    "apo_zero": Loss(lambda beta, eps: 1.0),
    "apo_down": Loss(lambda beta, eps: 1.0),
    "discopop": Loss(lambda beta, eps: 0.5 * LN2 + 0.5, differs=True),
    # The likelihood of the chosen answers: no preference, and no value that is known beforehand.
    "sft": Loss(lambda beta, eps: math.nan, differs=True, sums=False),
}
assert tuple(LOSSES) == get_args(LossName)


def first_loss(
    weights: Mapping[LossName, float], beta: float, label_smoothing: float
) -> float | None:
    """The value of a mixture before the first step; None when it contains `sft`."""
    if "sft" in weights:
        return None
    return sum(
        weight * LOSSES[name].at_start(beta, label_smoothing) for name, weight in weights.items()
    )


def sigmoid_loss(margins: Sequence[float], beta: float) -> float:
    """The mean of -log sigma(beta * margin) over margins of log-ratios, in nats (Rafailov et al.
    2023, eq. 7)."""
    scaled = [beta * margin for margin in margins]
    losses = [max(0.0, -x) + math.log1p(math.exp(-abs(x))) for x in scaled]
    return sum(losses) / len(losses)


def sorts(weights: Iterable[LossName]) -> list[LossName]:
    """Those of the losses that compare the pairs of a micro-batch with each other."""
    return sorted(name for name in weights if LOSSES[name].sorts)


def wrong_combination(
    weights: Mapping[LossName, float],
    *,
    beta: float,
    label_smoothing: float,
    f_divergence: str,
    wpo: bool,
    micro_batch_size: int,
) -> str | None:
    """Why these settings do not belong together, or None when they do."""
    chosen: dict[str, Loss] = {name: LOSSES[name] for name in weights}
    if set(chosen) == {"sft"}:
        return "`sft` alone is not a preference loss; mix it: {sigmoid: 1.0, sft: 0.2}"
    summed = sorted(name for name, loss in chosen.items() if loss.sums)
    if beta > 1 and summed:
        return (
            f"beta {beta:g} saturates `{summed[0]}`, which sums log-ratios over the tokens of an "
            "answer; above 1 belongs to a length-normalised loss (`sigmoid_norm`)"
        )
    smoothing = sorted(name for name, loss in chosen.items() if loss.smooths)
    if label_smoothing and not smoothing:
        return (
            f"label_smoothing {label_smoothing:g} is not used by any of {sorted(chosen)}; it "
            "belongs to `robust`, `exo_pair`, `aot` and `aot_unpaired`"
        )
    if not label_smoothing and (needy := sorted({"robust", "exo_pair"} & set(chosen))):
        return f"`{needy[0]}` needs label_smoothing > 0, the share of wrong labels it assumes"
    if f_divergence != "reverse_kl":
        others = sorted(name for name, loss in chosen.items() if not loss.differs)
        if others:
            return f"f_divergence {f_divergence} does not apply to `{others[0]}`"
    sorting = sorts(weights)
    if sorting and wpo:
        return f"`{sorting[0]}` sorts the batch, which would misalign wpo's weights"
    if sorting and micro_batch_size < 2:
        return f"`{sorting[0]}` compares the pairs of a micro-batch; micro_batch_size must be >= 2"
    return None
