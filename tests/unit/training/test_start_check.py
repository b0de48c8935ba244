"""The rule of the checks before the first step: what rounding explains, and what it does not."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

from dpo_dist.config import Train
from dpo_dist.errors import TrainingDiverged
from dpo_dist.losses import first_loss, sigmoid_loss
from dpo_dist.training.preference_trainer import PairCollator, PreferenceTrainer
from dpo_dist.training.start_check import (
    DEVIATIONS,
    ENGINE_BIAS,
    ENGINE_NOISE,
    NOISE,
    AnswerDifference,
    Expected,
    check_arithmetic,
    check_policy,
    check_reference,
    check_witness,
    disagreement,
    tolerance,
)

LN2 = math.log(2)


def test_the_first_loss_follows_from_the_equations() -> None:
    assert first_loss({"sigmoid": 1.0}, 0.1, 0) == pytest.approx(0.693147, abs=1e-6)
    assert first_loss({"robust": 1.0}, 0.1, 0.1) == pytest.approx(math.log(2))
    assert first_loss({"hinge": 0.5, "sigmoid": 1.0}, 0.1, 0) == pytest.approx(0.5 + math.log(2))
    assert first_loss({"ipo": 1.0}, 0.1, 0) == pytest.approx(25.0)
    assert first_loss({"sigmoid": 1.0, "sft": 0.1}, 0.1, 0) is None


@pytest.mark.parametrize("precision", NOISE)
@pytest.mark.parametrize("seed", range(50))
def test_rounding_is_what_adds_up_like_the_root_of_the_tokens(seed: int, precision: str) -> None:
    """Answers within the tolerance pass if their sum is within its own, and any one answer that is
    beyond its tolerance is named."""
    draw, noise = random.Random(seed), NOISE[precision]
    drawn = [(draw.randint(1, 5000), draw.uniform(-1, 1)) for _ in range(draw.randint(1, 64))]
    answers = [
        AnswerDifference(f"row-{n}", t, x * tolerance(t, noise)) for n, (t, x) in enumerate(drawn)
    ]
    total = sum(a.total for a in answers)
    together = abs(total) <= tolerance(sum(a.tokens for a in answers), noise)
    assert (disagreement(answers, noise) is None) == together
    wrong = AnswerDifference("wrong", 300, 1.01 * tolerance(300, noise))
    reason = disagreement([*answers, wrong], noise)
    assert reason is not None and "row wrong" in reason


def test_small_differences_that_all_answers_share_are_found() -> None:
    """0.02 nats per token: no single answer is suspicious."""
    answers = [AnswerDifference(f"{n}", 300, 0.02 * 300) for n in range(32)]
    assert disagreement(answers[:1], NOISE["bfloat16"]) is None
    assert "32 answers" in str(disagreement(answers, NOISE["bfloat16"]))


def test_noise_without_a_direction_is_found_by_its_size() -> None:
    """Dropout: the sum is small, the tokens' differences are not."""
    quiet = AnswerDifference("a", 300, 1.0, squares=300 * 0.07**2)
    check_policy([quiet], "bfloat16")
    loud = AnswerDifference("a", 300, 1.0, squares=300 * 0.25**2)
    with pytest.raises(TrainingDiverged, match=r"0\.25 nats \(root mean square\).*dropout is on"):
        check_policy([loud], "bfloat16")


@pytest.mark.parametrize("total", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_explained(total: float) -> None:
    answers = [AnswerDifference("a", 10, 0.0), AnswerDifference("b", 10, total)]
    for check in (check_policy, check_reference):
        with pytest.raises(TrainingDiverged, match="row b"):
            check(answers, "bfloat16")
    with pytest.raises(TrainingDiverged):
        check_witness(answers)


def test_a_swapped_answer_is_found_among_many() -> None:
    answers = [AnswerDifference(f"{n}", 300, 0.0) for n in range(64)]
    answers[7], answers[9] = AnswerDifference("7", 300, 40.0), AnswerDifference("9", 300, -40.0)
    with pytest.raises(TrainingDiverged, match=r"stored log-probs.*row 7 differ by 40"):
        check_reference(answers, "bfloat16")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_witness_is_held_to_a_mean_per_token(sign: int) -> None:
    tokens = 4 * 300
    allowed = (DEVIATIONS * ENGINE_NOISE * math.sqrt(tokens) + ENGINE_BIAS * tokens) / tokens
    check_witness([AnswerDifference("a", 300, sign * 0.99 * allowed * 300)] * 4)
    check_witness([])
    with pytest.raises(TrainingDiverged, match=r"not the one that sampled.*chat template.*PiSSA"):
        check_witness([AnswerDifference("a", 300, sign * 1.01 * allowed * 300)] * 4)


MOVED = Expected(chosen=(3.0, 1.0), rejected=(-2.0, 0.0), error=0.0)
MOVED_LOSS = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-0.1))) / 2
EQUAL = Expected(chosen=(0.0, 0.0), rejected=(0.0, 0.0), error=0.0)


def test_the_sigmoid_loss_is_that_of_the_paper_at_any_margin() -> None:
    assert sigmoid_loss([5.0, 1.0], 0.1) == pytest.approx(MOVED_LOSS)
    assert sigmoid_loss([0.0], 0.3) == pytest.approx(math.log(2))
    assert sigmoid_loss([-1e5], 0.1) == pytest.approx(1e4)


@pytest.mark.parametrize(
    ("loss", "rewards", "expected", "message"),
    [
        (LN2, (0.0, 0.0), EQUAL, None),
        (LN2 + 5e-4, (0.0, 0.0), EQUAL, None),
        (LN2 + 2e-3, (0.0, 0.0), EQUAL, r"first loss is 0\.69515, but .* give 0\.69315"),
        (math.nan, (0.0, 0.0), EQUAL, "first loss is nan"),
        # Most losses do not change if the reference shifts both answers by the same amount.
        (LN2, (5.0, 5.0), EQUAL, r"reward of chosen answers is 5\.0"),
        (LN2, (0.0, math.nan), EQUAL, "rejected answers is nan"),
        (MOVED_LOSS, (0.2, -0.1), MOVED, None),
        (LN2, (0.0, 0.0), MOVED, r"reward of chosen answers is 0\.00000, but .* give 0\.20000"),
        (MOVED_LOSS, (0.2, -0.103), MOVED, r"reward of rejected answers is -0\.10300"),
        # Means that are right, of pairs that are not.
        (MOVED_LOSS + 2e-3, (0.2, -0.1), MOVED, "first loss"),
    ],
)
def test_the_first_loss_and_rewards_follow_from_the_log_ratios(
    loss: float, rewards: tuple[float, float], expected: Expected, message: str | None
) -> None:
    with nullcontext() if message is None else pytest.raises(TrainingDiverged, match=message):
        check_arithmetic(loss, rewards, Train(), expected)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_what_rounding_makes_of_loss_and_rewards_grows_with_beta(beta: float) -> None:
    """A nat of noise in one answer of one pair is allowed for, in proportion to beta."""
    noisy = Expected(chosen=(0.0,), rejected=(0.0,), error=1.0)
    check_arithmetic(sigmoid_loss([1.0], beta), (beta, 0.0), Train(beta=beta), noisy)
    with pytest.raises(TrainingDiverged):
        check_arithmetic(LN2, (1.1 * beta + 2e-3, 0.0), Train(beta=beta), noisy)


def test_a_mixture_with_sft_and_other_losses_are_held_to_their_rewards() -> None:
    for settings in (Train(loss={"sigmoid": 1.0, "sft": 1.0}), Train(wpo=True)):
        check_arithmetic(3.2, (0.0005, -0.0005), settings, EQUAL)
        with pytest.raises(TrainingDiverged, match=r"0\.50000"):
            check_arithmetic(3.2, (0.5, 0.4), settings, EQUAL)
    check_arithmetic(123.0, (0.2, -0.1), Train(loss={"hinge": 1.0}), MOVED)


def test_deepspeed_s_dtype_does_not_round_the_reference() -> None:
    """transformers casts every float of a batch to the dtype of DeepSpeed's configuration."""
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    trainer = object.__new__(PreferenceTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    trainer.is_deepspeed_enabled = True
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    logps = torch.tensor([-301.0])
    assert Trainer._prepare_input(trainer, logps).item() != -301.0
    batch = trainer._prepare_input({"ref_chosen_logps": logps, "nested": [logps]})
    assert batch["ref_chosen_logps"].item() == batch["nested"][0].item() == -301.0


def test_the_collator_hands_the_witness_on_in_the_order_of_the_rows() -> None:
    ids = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}
    rows = [
        {"id": "a", **ids, "chosen_witness": -1.5, "rejected_witness": math.nan},
        {"id": "b", **ids},  # rows from outside the run have none
    ]
    batch = PairCollator(pad_token_id=0, packed=False)(rows)
    expected = torch.tensor([[-1.5, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    assert torch.equal(batch["witness"].isnan(), expected.isnan())
    assert batch["witness"][0, 0] == -1.5
