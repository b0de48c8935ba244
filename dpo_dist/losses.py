"""Properties of TRL's preference losses: the settings each one uses, and its value at the start.

TRL computes the losses (`DPOTrainer._compute_loss`). Before the first step, policy and reference
are the same model, so every log-ratio is 0 and the value of each loss is known. A different value
reveals a wrong reference.
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
    """One loss. `at_start(beta, label_smoothing)` is its value when all log-ratios are 0.

    - `uses_smoothing`: it uses `label_smoothing`.
    - `margin_only`: it depends on the log-ratios only through chosen - rejected. f-divergences
      generalise this difference (Wang et al. 2024, arXiv 2309.16240).
    - `sums_tokens`: beta multiplies log-ratios summed over tokens; beta > 1 saturates the loss.
    - `sorts_batch`: it compares sorted batches, so its value depends on the micro-batch.
    """

    at_start: Callable[[float, float], float]
    uses_smoothing: bool = False
    margin_only: bool = False
    sums_tokens: bool = True
    sorts_batch: bool = False


def _exo(beta: float, smoothing: float) -> float:
    return -LN2 - 0.5 * (math.log1p(-smoothing) + math.log(smoothing))


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(lambda beta, eps: LN2, margin_only=True),
    "sigmoid_norm": Loss(lambda beta, eps: LN2, margin_only=True, sums_tokens=False),
    "hinge": Loss(lambda beta, eps: 1.0, margin_only=True),
    "ipo": Loss(lambda beta, eps: (1 / (2 * beta)) ** 2, margin_only=True, sums_tokens=False),
    "robust": Loss(lambda beta, eps: LN2, uses_smoothing=True, margin_only=True),
    "exo_pair": Loss(_exo, uses_smoothing=True, margin_only=True),
    "nca_pair": Loss(lambda beta, eps: 2 * LN2),
    "bco_pair": Loss(lambda beta, eps: 2 * LN2),
    "sppo_hard": Loss(lambda beta, eps: 2 * (0.5 / beta) ** 2, sums_tokens=False),
    "aot": Loss(lambda beta, eps: LN2, uses_smoothing=True, sorts_batch=True),
    "aot_unpaired": Loss(lambda beta, eps: LN2, uses_smoothing=True, sorts_batch=True),
    "apo_zero": Loss(lambda beta, eps: 1.0),
    "apo_down": Loss(lambda beta, eps: 1.0),
    "discopop": Loss(lambda beta, eps: 0.5 * LN2 + 0.5, margin_only=True),
    # The likelihood of the chosen answers: not a preference loss, and its first value is unknown.
    "sft": Loss(lambda beta, eps: math.nan, margin_only=True, sums_tokens=False),
}
assert tuple(LOSSES) == get_args(LossName)


def first_loss(
    weights: Mapping[LossName, float], beta: float, label_smoothing: float
) -> float | None:
    """The value of a mixture before the first step; None if it contains `sft`."""
    if "sft" in weights:
        return None
    return sum(
        weight * LOSSES[name].at_start(beta, label_smoothing) for name, weight in weights.items()
    )


def sigmoid_loss(margins: Sequence[float], beta: float) -> float:
    """The mean of -log sigma(beta * margin), in nats (Rafailov et al. 2023, eq. 7)."""
    scaled = [beta * margin for margin in margins]
    losses = [max(0.0, -x) + math.log1p(math.exp(-abs(x))) for x in scaled]
    return sum(losses) / len(losses)


def sorting_losses(weights: Iterable[LossName]) -> list[LossName]:
    """The losses among `weights` that compare the pairs of a micro-batch with each other."""
    return sorted(name for name in weights if LOSSES[name].sorts_batch)


def wrong_combination(
    weights: Mapping[LossName, float],
    *,
    beta: float,
    label_smoothing: float,
    f_divergence: str,
    wpo: bool,
    micro_batch_size: int,
) -> str | None:
    """What is wrong with this combination of settings, or None if it is valid."""
    names = sorted(weights)
    if names == ["sft"]:
        return "`sft` alone is not a preference loss; mix it: {sigmoid: 1.0, sft: 0.2}"
    summed = [name for name in names if LOSSES[name].sums_tokens]
    if beta > 1 and summed:
        return (
            f"beta {beta:g} saturates `{summed[0]}`, which sums log-ratios over the tokens of an "
            "answer; use beta > 1 only with a length-normalised loss (`sigmoid_norm`)"
        )
    if label_smoothing and not any(LOSSES[name].uses_smoothing for name in names):
        return (
            f"label_smoothing {label_smoothing:g} is not used by any of {names}; only `robust`, "
            "`exo_pair`, `aot` and `aot_unpaired` use it"
        )
    unsmoothed = [name for name in names if name in ("exo_pair", "robust")]
    if not label_smoothing and unsmoothed:
        return f"`{unsmoothed[0]}` needs label_smoothing > 0, the share of wrong labels it assumes"
    unsuited = [name for name in names if not LOSSES[name].margin_only]
    if f_divergence != "reverse_kl" and unsuited:
        return f"f_divergence {f_divergence} does not apply to `{unsuited[0]}`"
    sorting = sorting_losses(names)
    if sorting and wpo:
        return f"`{sorting[0]}` sorts the batch, which would misalign wpo's weights"
    if sorting and micro_batch_size < 2:
        return f"`{sorting[0]}` compares the pairs of a micro-batch; micro_batch_size must be >= 2"
    return None
