"""A reward model's labels are its scores', however they are batched and padded."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from dpo_dist.config import RewardModelConfig
from dpo_dist.errors import ConfigError, JudgeFailed, ModelError
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import orders
from dpo_dist.judging.reward_model import RewardModelJudge
from dpo_dist.runs.weights import resource_digests
from dpo_dist.storage.records import Ballot
from tests.contracts.test_judges import asked, comparison
from tests.tiny import make_model, make_reward_model, make_tokenizer
from tests.unit.judging.test_panel import comparisons


def settings(model: Path | str, **more: object) -> RewardModelConfig:
    values = {"type": "reward_model", "model": str(model), "max_length": 512, "dtype": "float32"}
    return RewardModelConfig.model_validate(values | more)


@pytest.fixture(scope="module", params=[True, False], ids=["pad", "no-pad"])
def model(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("models") / "reward", pad=request.param)


def texts(count: int = 40) -> list[Comparison]:
    """Questions whose answers differ in length from a few tokens to a few hundred."""
    drawn = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta"]
    pairs = [
        tuple(" ".join(drawn.choices(words, k=drawn.randrange(1, 60))) for _ in range(2))
        for _ in range(count)
    ]
    return [comparison(n, first, second) for n, (first, second) in enumerate(pairs)]


def alone(model: Path, asked_about: Comparison) -> tuple[float, float]:
    """The two scores as the model gives them to one unpadded text after the other."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = make_tokenizer()
    scores = []
    for answer in (asked_about.first_text, asked_about.second_text):
        turns = [m.model_dump() for m in asked_about.prompt.messages]
        turns.append({"role": "assistant", "content": answer})
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
        with torch.no_grad():
            scores.append(classifier(torch.tensor([ids])).logits.item())
    return scores[0], scores[1]


def read_scores(ballot: Ballot) -> list[float]:
    return [float(score) for score in ballot.reasoning.split(" against ")]


def test_scores_are_those_of_each_text_alone(model: Path) -> None:
    questions = texts(12)
    ballots = {b.prompt_id: b for b in asked(RewardModelJudge(settings(model)), questions)}
    for question in questions:
        expected = alone(model, question)
        ballot = ballots[question.prompt.id]
        assert read_scores(ballot) == pytest.approx(expected, abs=1e-4)
        assert ballot.outcome == ("first" if expected[0] > expected[1] else "second")
    assert {ballot.outcome for ballot in ballots.values()} == {"first", "second"}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_and_their_order_change_nothing(model: Path, batch_size: int) -> None:
    questions = texts()
    expected = {b.key: b for b in asked(RewardModelJudge(settings(model)), questions)}
    random.Random(batch_size).shuffle(questions)
    judge = RewardModelJudge(settings(model, batch_size=batch_size))
    ballots = asked(judge, questions)
    assert len(ballots) == len(expected) == 40
    for ballot in ballots:
        assert ballot.outcome == expected[ballot.key].outcome
        assert read_scores(ballot) == pytest.approx(read_scores(expected[ballot.key]), abs=2e-4)


class Counting(RewardModelJudge):
    scored = 0

    def _score(self, batch: Sequence[list[int]]) -> list[float]:
        self.scored += len(batch)
        return super()._score(batch)


def test_a_text_is_scored_once_for_both_orders(model: Path) -> None:
    judge = Counting(settings(model, batch_size=2))
    questions = [
        question
        for comparison in comparisons(30)
        for question in orders(comparison, both_orders=True, seed=0, repeat=0.5)
    ]
    random.Random(0).shuffle(questions)
    ballots = asked(judge, questions)
    assert judge.scored == 60 < len(ballots)
    preferred: dict[str, set[str | None]] = {}
    for ballot in ballots:
        preferred.setdefault(ballot.prompt_id, set()).add(ballot.preferred)
    assert all(len(names) == 1 for names in preferred.values()), "orders and repeats agree"


def test_what_is_too_long_is_not_cut(model: Path) -> None:
    judge = Counting(settings(model, max_length=60))
    long = comparison(0, "GOOD", "x" * 60)
    ballots = {b.prompt_id: b for b in asked(judge, [long, comparison(1, "GOOD", "bad")])}
    assert ballots["p0"].outcome == "exceeds_context" and ballots["p0"].preferred is None
    assert ballots["p1"].compares
    assert judge.scored == 3


def test_scores_within_the_margin_are_a_tie(model: Path) -> None:
    (question,) = texts(1)
    first, second = alone(model, question)
    difference = abs(first - second)
    for margin, tie in [(0.0, False), (0.9 * difference, False), (1.1 * difference, True)]:
        (ballot,) = asked(RewardModelJudge(settings(model, tie_margin=margin)), [question])
        assert (ballot.outcome == "tie") is tie


def test_what_decides_a_score_is_in_the_identity(tmp_path: Path) -> None:
    model = make_reward_model(tmp_path / "model")

    def identity(**more: object) -> str:
        return RewardModelJudge(settings(model, **more)).identity

    first, files = identity(), resource_digests([settings(model)])
    assert identity(batch_size=1) == first
    others: list[dict[str, object]] = [
        {"max_length": 100},
        {"tie_margin": 0.1},
        {"dtype": "bfloat16"},
    ]
    assert len({first, *(identity(**other) for other in others)}) == 4
    make_reward_model(model, seed=1)
    assert identity() != first and resource_digests([settings(model)]) != files


def test_bfloat16_scores(model: Path) -> None:
    (ballot,) = asked(RewardModelJudge(settings(model, dtype="bfloat16")), texts(1))
    assert ballot.compares


def test_a_model_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    def refused(model: Path | str, message: str, error: type[Exception] = ModelError) -> None:
        with pytest.raises(error, match=message):
            RewardModelJudge(settings(model))

    refused("./nowhere", "no such model")
    two = make_reward_model(tmp_path / "two", num_labels=2)
    refused(two, "2 labels; a reward model has one")
    short = make_reward_model(tmp_path / "short", max_position_embeddings=100)
    refused(short, "max_length 512: .* has 100 positions", ConfigError)
    silent = make_reward_model(tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    refused(silent, "no chat template")
    mute = make_reward_model(tmp_path / "mute")
    (mute / "model.safetensors").rename(mute / "pytorch_model.bin")
    refused(mute, "pickled weights are never loaded")
    refused(make_model(tmp_path / "chat"), "2 labels")


def test_a_head_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    """A chat model with `num_labels: 1` written into its configuration would get a random one."""
    chat = make_model(tmp_path / "chat")
    config = json.loads((chat / "config.json").read_text())
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    (chat / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"score\.weight are missing"):
        asked(RewardModelJudge(settings(chat)), texts(1))


def test_a_score_that_is_no_number_is_no_label(tmp_path: Path) -> None:
    model = make_reward_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JudgeFailed, match=r"not finite.*dtype: float32"):
        asked(RewardModelJudge(settings(model)), texts(1))
