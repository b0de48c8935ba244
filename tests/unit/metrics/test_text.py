"""Metrics of texts against values taken by hand."""

from __future__ import annotations

import random

import pytest
from pydantic import TypeAdapter

from dpo_dist.config import MetricConfig
from dpo_dist.metrics import Answer, NotScored, build_metric
from dpo_dist.metrics.text import longest_common_subsequence
from dpo_dist.storage.records import Message, Prompt

SECTION: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)


def score(answer: str | Answer, reference: object = None, **section: object) -> float:
    prompt = Prompt(
        id="p", messages=(Message(role="user", content="q"),), reference={"text": reference}
    )
    metric = build_metric(SECTION.validate_python(section))
    return metric.score(prompt, answer if isinstance(answer, Answer) else Answer(answer))


@pytest.mark.parametrize(
    ("text", "search", "full"),
    [("SEV2", 1, 1), ("It is SEV2.", 1, 0), ("SEV2\n", 1, 0), ("sev2", 0, 0), ("", 0, 0)],
)
def test_a_pattern_is_found_or_is_all(text: str, search: float, full: float) -> None:
    assert score(text, type="regex", pattern="SEV[1-4]") == search
    assert score(text, type="regex", pattern="SEV[1-4]", match="full") == full


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("  The\nLog server ", "the log server", 1),
        ("the log server.", "the log server", 0),
        ("ﬁne", "FINE", 1),  # the ligature is a compatibility form
        ("Straße", "STRASSE", 1),
        ("b", ["a", "B"], 1),
        ("c", ["a", "B"], 0),
        ("12", 12, 1),
        ("", "x", 0),
    ],
)
def test_exact_match(text: str, reference: object, value: float) -> None:
    assert score(text, reference, type="exact_match", field="text") == value


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        # The examples of Lin 2004, section 3.1: subsequences of 3 and 2 of 4 words.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # 3 of 5 given and of 4 wanted words: 2 * 3 / 9.
        ("The disk, it is FULL", "the disk is empty", 2 / 3),
        ("the disk", ["nothing", "the disk of node 3"], 2 * 2 / 7),
        ("", "the disk", 0),
        ("!?", "the disk", 0),
        ("ошибка на диске", "Ошибка диске", 4 / 5),
    ],
)
def test_rouge_l(text: str, reference: object, value: float) -> None:
    assert score(text, reference, type="rouge_l", field="text") == pytest.approx(value)


def test_the_subsequence_is_as_long_as_the_textbook_s() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = (draw.choices("abcd", k=draw.randrange(90)) for _ in range(2))
        lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                lengths[i + 1][j + 1] = (
                    lengths[i][j] + 1 if x == y else max(lengths[i][j + 1], lengths[i + 1][j])
                )
        assert longest_common_subsequence(a, b) == lengths[-1][-1]


def test_length_and_how_the_answer_ended() -> None:
    answer = Answer("grün 🚀", tokens=5, finish_reason="length")
    assert score(answer, type="length") == 5
    assert score(answer, type="length", unit="characters") == 6
    assert score(answer, type="stop_rate") == 0
    assert score(Answer("", 1, "stop"), type="stop_rate") == 1


def test_distinct_and_repeated_ngrams() -> None:
    text = "The disk is full: the disk is full."  # 8 words, 7 bigrams, 4 of them distinct
    assert score(text, type="distinct_n") == pytest.approx(4 / 7)
    assert score(text, type="distinct_n", n=1) == pytest.approx(4 / 8)
    assert score(text, type="repetition", n=2) == pytest.approx(3 / 7)
    assert score(text, type="repetition") == pytest.approx(1 / 5), "4-grams"
    assert score("a b c d", type="repetition") == 0


@pytest.mark.parametrize(
    ("section", "reference", "reason"),
    [
        ({"type": "distinct_n"}, None, "too_short"),
        ({"type": "repetition"}, None, "too_short"),
        ({"type": "exact_match", "field": "text"}, None, "no_reference"),
        ({"type": "exact_match", "field": "text"}, [], "no_reference"),
        ({"type": "rouge_l", "field": "text"}, "?!", "no_reference"),
    ],
)
def test_nothing_to_score_is_not_zero(section: dict, reference: object, reason: str) -> None:
    with pytest.raises(NotScored) as caught:
        score("word", reference, **section)
    assert caught.value.reason == reason


def test_refusals() -> None:
    assert score("I'm sorry, but I can't help with that.", type="refusal_rate") == 1
    assert score("I'm sorry to hear that. Restart the service.", type="refusal_rate") == 0
