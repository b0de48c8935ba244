"""Checks of the first micro-batch: policy, reference and sampler are the model that they should be.

Before the first step, the log-probs of the weights that training starts from are computed again in
the training's own batch (same rows, packing and shape), with dropout off. Four things must agree:

1. the policy's log-probs in training, position by position. The shape is the same, so only the
   order of sums may differ;
2. the reference's log-probs that training uses, if they were computed in batches of another shape;
3. TRL's first rewards and first loss, which follow from the log-probs;
4. the sampling engine's own log-probs of the same answers (the witness). It does not share the
   trainer's code, so it sees a start that is wrong for policy and reference alike.

Rounding errors of the tokens are nearly independent, so those of T tokens add up to sqrt(T) times
those of one, and every tolerance is `DEVIATIONS` standard deviations of such a sum. It is in nats;
beta multiplies a log-ratio and its error alike. `python -m benchmarks.gate` measures the errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from dpo_dist.config import Train, is_quantized
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import first_loss, sigmoid_loss
from dpo_dist.training import Batch, CausalLM, Trainer
from dpo_dist.training.divergence import evaluating

# Standard deviation of a token's log-prob in nats, between two ways to compute it with the same
# weights: with other shapes or orders of sums, and with another engine.
NOISE = {"float32": 1e-3, "bfloat16": 0.07}
ENGINE_NOISE = 0.15
# Between engines errors of a prompt's tokens have a part in common, of this size per token.
ENGINE_BIAS = 0.02
DEVIATIONS = 6.0
SPREAD = 2.0  # a root mean square over hundreds of tokens hardly varies
# What TRL computes from the same log-probs, in float32: relative to the loss.
ARITHMETIC = 1e-3
# The losses change by at most this much per nat of a log-ratio, times beta, relative to their first
# value (or to 1).
STEEPEST = 4.0
COMPLETIONS = ("chosen", "rejected")


@dataclass(frozen=True)
class AnswerDifference:
    """How two log-probs of one answer differ over its `tokens`: the `total` (nats), and the sum of
    the tokens' squares, if each was compared."""

    row: str
    tokens: int
    total: float
    squares: float = 0.0


def tolerance(tokens: float, noise: float) -> float:
    """The largest difference of log-probs, summed over `tokens`, that rounding explains (nats)."""
    return DEVIATIONS * noise * math.sqrt(tokens)


def disagreement(answers: Sequence[AnswerDifference], noise: float) -> str | None:
    """Why rounding does not explain the differences, or None. They are examined per answer, over
    all answers together, which reveals small differences that they share, and per token. A
    difference that is not finite is never explained."""
    tokens, total = sum(a.tokens for a in answers), sum(a.total for a in answers)
    everything = AnswerDifference("", tokens, total, sum(a.squares for a in answers))
    for answer in (*answers, everything):
        limit = tolerance(answer.tokens, noise)
        if not abs(answer.total) <= limit:
            whose = f"an answer in row {answer.row}" if answer.row else f"{len(answers)} answers"
            return (
                f"those of {whose} differ by {answer.total:.3g} nats in {answer.tokens} tokens; "
                f"rounding explains at most {limit:.3g}"
            )
    spread, limit = math.sqrt(everything.squares / max(tokens, 1)), SPREAD * noise
    if not spread <= limit:
        return (
            f"a token's differs by {spread:.3g} nats (root mean square); rounding explains at most "
            f"{limit:.3g}"
        )
    return None


def check_policy(answers: Sequence[AnswerDifference], precision: str) -> None:
    """The policy in training against the same weights at the same shape."""
    if reason := disagreement(answers, NOISE[precision]):
        raise TrainingDiverged(
            "before the first step, the policy is the model that training starts from, but their "
            f"log-probs disagree: {reason}. Likely causes: dropout is on; the adapter is off, or "
            "the reference is the base instead of the SFT model; the weights changed after loading."
        )


def check_reference(answers: Sequence[AnswerDifference], precision: str) -> None:
    """The stored log-probs of the reference against the ones computed again."""
    if reason := disagreement(answers, NOISE[precision]):
        raise TrainingDiverged(
            "the reference's stored log-probs disagree with those of the weights that training "
            f"starts from: {reason}. Likely causes: they were computed with other weights, for "
            "example the base instead of the SFT model, or belong to other rows. Remove the "
            "folder reference_logps and run the same command again."
        )


def check_witness(answers: Sequence[AnswerDifference]) -> None:
    """The weights that training starts from against the engine that sampled the answers. `total` is
    the trainer's log-prob minus the engine's. Without answers there is nothing to compare."""
    tokens, total = sum(a.tokens for a in answers), sum(a.total for a in answers)
    limit = tolerance(tokens, ENGINE_NOISE) + ENGINE_BIAS * tokens
    if not abs(total) <= limit:
        raise TrainingDiverged(
            f"the model that training starts from is not the one that sampled the answers: its "
            f"log-probs of {len(answers)} of its own answers differ from the sampling engine's by "
            f"{total / tokens:+.4f} nats per token (at most {limit / tokens:.4f} by rounding). "
            "Policy and reference agree, so both are wrong. Likely causes: another chat template "
            "or tokenizer than for sampling; an adapter on another base (PiSSA and similar "
            "adapters change the base when they are created); an adapter merged in another "
            "precision; answers that other weights have sampled."
        )


@dataclass(frozen=True)
class Expected:
    """What TRL must report for the first micro-batch of all ranks: per pair, the log-ratios of the
    chosen and of the rejected answer in nats; `error` bounds theirs."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    error: float

    @property
    def from_reference(self) -> bool:
        """Whether training starts from the reference, so that every log-ratio is 0."""
        return not any((*self.chosen, *self.rejected))


def check_arithmetic(
    loss: float, rewards: Sequence[float], settings: Train, expected: Expected
) -> None:
    """TRL's first rewards (means of chosen and of rejected answers) and first loss must follow from
    the log-ratios. If these are not 0, only the sigmoid loss is checked."""
    beta = settings.beta
    rounding = beta * expected.error
    # With an f-divergence TRL's rewards are still those of the log-ratios.
    ratios_of = (expected.chosen, expected.rejected)
    for name, reward, ratios in zip(COMPLETIONS, rewards, ratios_of, strict=True):
        wanted = beta * sum(ratios) / len(ratios)
        allowed = rounding + ARITHMETIC * max(1.0, abs(wanted))
        if not abs(reward - wanted) <= allowed:
            raise TrainingDiverged(
                f"the first reward of {name} answers is {reward:.5f}, but the log-probs of policy "
                f"and reference give {wanted:.5f}"
            )
    if settings.wpo:  # its weights scale the loss by an unknown factor
        return
    known = None
    if expected.from_reference:
        known = first_loss(settings.loss, beta, settings.label_smoothing)
    elif settings.f_divergence == "reverse_kl" and set(settings.loss) == {"sigmoid"}:
        margins = [c - r for c, r in zip(expected.chosen, expected.rejected, strict=True)]
        known = settings.loss["sigmoid"] * sigmoid_loss(margins, beta)
    if known is None:
        return
    allowed = (ARITHMETIC + STEEPEST * rounding) * max(1.0, abs(known))
    if not abs(loss - known) <= allowed:
        raise TrainingDiverged(
            f"the first loss is {loss:.5f}, but the log-probs of policy and reference give "
            f"{known:.5f}"
        )


class FirstBatch:
    """The first micro-batch of all ranks; every rank makes the same calls. Its creation checks the
    reference and the witness, `check` what training made of the batch.

    `inputs` are for TRL: if training starts from the reference, its stored log-probs are replaced
    by those computed again, so that the first loss compares equal shapes.
    """

    def __init__(self, trainer: Trainer, model: CausalLM, inputs: Batch) -> None:
        """`inputs` are the collator's; `rows` are the pairs' ids, and `witness` (2, pairs) the
        engine's log-probs of chosen and rejected answers, NaN for none."""
        settings: Train = trainer._settings
        self._settings, self._accelerator = settings, trainer.accelerator
        self._precision = "bfloat16" if trainer.args.bf16 else "float32"
        rows, witness = inputs["rows"], inputs["witness"]
        inputs = {key: value for key, value in inputs.items() if key not in ("rows", "witness")}
        self._rows, self._mask = [*rows, *rows], inputs["completion_mask"][:, 1:].bool()
        live = settings.reference == "live"
        scorer = trainer.ref_model if live and trainer.ref_model is not None else model
        with evaluating(model), recording(scorer) as seen:
            sums = trainer.compute_ref_log_probs(scorer, inputs)
        self._start = self._tokens(seen[0])
        self._log_ratios = [s - s for s in sums]
        if not live:
            stored = [inputs[f"ref_{which}_logps"] for which in COMPLETIONS]
            differences = [s - r for s, r in zip(sums, stored, strict=True)]
            if trainer._job.reference is None:
                check_reference(self._gathered(torch.cat(differences)), self._precision)
                inputs |= {f"ref_{w}_logps": s for w, s in zip(COMPLETIONS, sums, strict=True)}
            else:
                self._log_ratios = differences
        self.inputs = inputs
        unexplained = self._start.sum(1) - witness.flatten().to(self._start)
        if not is_quantized(
            settings.method
        ):  # the engine samples from the base before quantization
            check_witness([a for a in self._gathered(unexplained) if not math.isnan(a.total)])
        self._seen: list[Tensor] = []

    @contextmanager
    def recorded(self, model: CausalLM) -> Iterator[None]:
        """Record the policy's log-probs while TRL computes the loss."""
        with recording(model) as seen:
            yield
        self._seen = seen[:1]

    def check(self, loss: float, rewards: Sequence[float]) -> None:
        """`loss` and `rewards` (of chosen and rejected answers) are TRL's means over all ranks."""
        difference = self._tokens(self._seen[0]) - self._start
        answers = self._gathered(difference.sum(1), difference.square().sum(1))
        check_policy(answers, self._precision)
        chosen, rejected = self._accelerator.gather(torch.stack(self._log_ratios, 1)).t().tolist()
        error = max(math.sqrt(a.squares * a.tokens) for a in answers)  # Cauchy-Schwarz
        check_arithmetic(loss, rewards, self._settings, Expected(chosen, rejected, error))

    def _tokens(self, values: Tensor) -> Tensor:
        """(R, L - 1) log-probs of the completions, zero elsewhere, in float64, without positions
        that prompt-learning adapters put before the tokens."""
        tokens: Tensor = values[:, -self._mask.shape[1] :].double() * self._mask
        return tokens

    def _gathered(self, totals: Tensor, squares: Tensor | None = None) -> list[AnswerDifference]:
        squares = torch.zeros_like(totals) if squares is None else squares
        columns = (self._mask.sum(1).tolist(), totals.tolist(), squares.tolist())
        own = [AnswerDifference(*values) for values in zip(self._rows, *columns, strict=True)]
        gathered: list[AnswerDifference] = gather_object(own)
        return gathered


@contextmanager
def recording(model: CausalLM) -> Iterator[list[Tensor]]:
    """The log-probs (R, L - 1) that each forward of the model returns to TRL."""
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, output: Any) -> None:
        seen.append(output.log_probs.detach())

    handle = model.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
