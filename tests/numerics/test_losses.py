"""Every loss of the run file is TRL's, starts where it must, and is what its equation says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig

from dpo_dist.config import Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.losses import LOSSES, first_loss
from dpo_dist.training import attention
from dpo_dist.training.models import choose_layout, load_policy
from dpo_dist.training.preference_trainer import PairCollator, PreferenceTrainer
from dpo_dist.training.reference_pass import ReferencePass
from dpo_dist.training.trainer import loss_arguments
from tests.numerics.test_against_trl import make_job, rows

BETA, EPS = 0.1, 0.05
PAIRS = range(4)


@pytest.fixture(scope="module")
def trainer(tiny_model: Path, tmp_path_factory) -> PreferenceTrainer:
    folder = tmp_path_factory.mktemp("losses")
    settings = Train(method={"type": "full"}, bf16=False, learning_rate=1e-3)
    job = make_job(tiny_model, folder, None, settings)
    model, _ = load_policy(job, torch.device("cpu"))
    tokenizer = load_tokenizer(str(tiny_model))
    trainer = PreferenceTrainer(
        job=job,
        packed=choose_layout(model, settings),
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            bf16=False,
            use_cpu=True,
            report_to="none",
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer,
        data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id, packed=True),
    )
    ReferencePass(trainer).run()
    return trainer


def loss_of(trainer: PreferenceTrainer, shift: float, **settings: Any) -> float:
    """The loss of `PAIRS`, `shift` nats added to every chosen log-ratio."""
    train = Train(bf16=False, beta=BETA, **settings)
    arguments = loss_arguments(train)
    trainer.loss_types, trainer.loss_weights = arguments["loss_type"], arguments["loss_weights"]
    trainer.label_smoothing = arguments["label_smoothing"]
    trainer.f_divergence_type = arguments["f_divergence_type"]
    trainer.f_alpha_divergence_coef = arguments["f_alpha_divergence_coef"]
    trainer.beta = arguments["beta"]
    trainer.ld_alpha, trainer.use_weighting = arguments["ld_alpha"], arguments["use_weighting"]
    trainer.args.discopop_tau = arguments["discopop_tau"]
    trainer._started = True  # the gate knows the settings that the trainer was built with
    batch = trainer.data_collator([trainer.train_dataset[i] for i in PAIRS])
    batch["ref_chosen_logps"] = batch["ref_chosen_logps"] - shift
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.train(), batch))


def smoothing(name: str) -> float:
    return EPS if LOSSES[name].uses_smoothing else 0.0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sft"])
def test_the_value_before_the_first_step(trainer: PreferenceTrainer, name: str) -> None:
    eps = smoothing(name)
    expected = first_loss({name: 1.0}, BETA, eps)
    assert expected is not None and math.isfinite(expected)
    value = loss_of(trainer, 0.0, loss=name, label_smoothing=eps)
    assert value == pytest.approx(expected, abs=1e-4 * max(1, expected))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# The losses at a chosen log-ratio of m and a rejected one of 0, from the papers' equations.
EQUATIONS = {
    "sigmoid": lambda m: -log_sigmoid(BETA * m),
    "hinge": lambda m: max(0.0, 1 - BETA * m),
    "robust": lambda m: (
        (-(1 - EPS) * log_sigmoid(BETA * m) + EPS * log_sigmoid(-BETA * m)) / (1 - 2 * EPS)
    ),
    "nca_pair": lambda m: (
        -log_sigmoid(BETA * m) - 0.5 * log_sigmoid(-BETA * m) - 0.5 * log_sigmoid(0.0)
    ),
    "bco_pair": lambda m: -log_sigmoid(BETA * m) - log_sigmoid(0.0),
    "sppo_hard": lambda m: (m - 0.5 / BETA) ** 2 + (0.5 / BETA) ** 2,
    "aot": lambda m: -(1 - EPS) * log_sigmoid(BETA * m) - EPS * log_sigmoid(-BETA * m),
    "aot_unpaired": lambda m: -(1 - EPS) * log_sigmoid(BETA * m) - EPS * log_sigmoid(-BETA * m),
    "apo_zero": lambda m: 1 - sigmoid(BETA * m) + sigmoid(0.0),
    "apo_down": lambda m: sigmoid(BETA * m) + 1 - sigmoid(BETA * m),
    "discopop": lambda m: (
        -log_sigmoid(BETA * m) * (1 - sigmoid(BETA * m / 0.05))
        + math.exp(-BETA * m) * sigmoid(BETA * m / 0.05)
    ),
    "exo_pair": lambda m: (
        sigmoid(BETA * m) * (log_sigmoid(BETA * m) - math.log(1 - EPS))
        + sigmoid(-BETA * m) * (log_sigmoid(-BETA * m) - math.log(EPS))
    ),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_value_at_a_margin_follows_the_equation(trainer: PreferenceTrainer, name: str) -> None:
    value = loss_of(trainer, 2.0, loss=name, label_smoothing=smoothing(name))
    assert value == pytest.approx(EQUATIONS[name](2.0), rel=1e-3)


@pytest.mark.parametrize(
    ("divergence", "score"),
    [
        ("forward_kl", 1 - math.exp(-2.0)),
        ("js_divergence", math.log(2) + log_sigmoid(2.0)),
        ("alpha_divergence", (math.exp(-0.5 * 2.0) - 1) / -0.5),
    ],
)
def test_an_f_divergence_bends_the_score(
    trainer: PreferenceTrainer, divergence: str, score: float
) -> None:
    value = loss_of(trainer, 2.0, f_divergence=divergence)
    assert value == pytest.approx(-log_sigmoid(BETA * score), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("ipo", lambda score: (score - 1 / (2 * BETA)) ** 2),
        ("sigmoid_norm", lambda score: -log_sigmoid(BETA * score)),
    ],
)
def test_a_length_normalised_loss_divides_by_the_answer_s_tokens(
    trainer: PreferenceTrainer, name: str, equation: Callable[[float], float]
) -> None:
    scores = [2.0 / len(trainer.train_dataset[i]["chosen_ids"]) for i in PAIRS]
    expected = sum(map(equation, scores)) / len(scores)
    assert loss_of(trainer, 2.0, loss=name) == pytest.approx(expected, rel=1e-3)


def answers(trainer: PreferenceTrainer) -> list[tuple[Any, ...]]:
    """(chosen, rejected) of `PAIRS`: per token log p and log sum p^2, from full logits."""
    model = trainer.model.train()
    model.set_attn_implementation("sdpa")
    found = []
    for row in (trainer.train_dataset[i] for i in PAIRS):
        pair = []
        for name in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[name]])
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
            log_p = log_p.double().log_softmax(-1)
            own = log_p.gather(1, torch.tensor(row[name])[:, None])[:, 0]
            pair.append((own.tolist(), (2 * log_p).logsumexp(-1).tolist()))
        found.append(tuple(pair))
    model.set_attn_implementation(attention.NAME)
    return found


def test_wpo_weighs_a_pair_by_how_likely_its_answers_are(trainer: PreferenceTrainer) -> None:
    """Equation 2 of Zhou et al. 2024 (arXiv 2406.11827)."""
    weights = [
        math.exp(sum((sum(own) - sum(aligned)) / len(own) for own, aligned in pair))
        for pair in answers(trainer)
    ]
    assert max(weights) > 1.1 * min(weights)
    expected = math.log(2) * sum(weights) / len(weights)
    assert loss_of(trainer, 0.0, wpo=True) == pytest.approx(expected, rel=1e-3)


def test_ld_alpha_weighs_what_an_answer_has_more_than_the_other(trainer: PreferenceTrainer) -> None:
    """Liu et al. 2024 (arXiv 2409.06411); the reference's log-probs are the plain ones here."""
    alpha, losses = 0.5, []
    for chosen, rejected in ([own for own, _ in pair] for pair in answers(trainer)):
        shared = min(len(chosen), len(rejected))
        margin = (alpha - 1) * (sum(chosen[shared:]) - sum(rejected[shared:]))
        losses.append(-log_sigmoid(BETA * margin))
    expected = sum(losses) / len(losses)
    assert abs(expected - math.log(2)) > 0.1
    assert loss_of(trainer, 0.0, ld_alpha=alpha) == pytest.approx(expected, rel=1e-3)


def test_a_mixture_is_the_weighted_sum(trainer: PreferenceTrainer) -> None:
    parts = {name: loss_of(trainer, 2.0, loss=name) for name in ("sigmoid", "hinge")}
    mixed = loss_of(trainer, 2.0, loss={"sigmoid": 0.5, "hinge": 2.0})
    assert mixed == pytest.approx(0.5 * parts["sigmoid"] + 2 * parts["hinge"], rel=1e-6)
    with_sft = loss_of(trainer, 2.0, loss={"sigmoid": 1.0, "sft": 1.0})
    assert with_sft > parts["sigmoid"] + 1, "the likelihood of the chosen answers comes on top"
