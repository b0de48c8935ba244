"""Half of a prompt's own 8-grams give it away; a template's do not."""

from __future__ import annotations

import random
import time
from itertools import count

import pytest

from dpo_dist.config import DataSource
from dpo_dist.data.leakage import overlaps
from dpo_dist.data.prompts import read_prompts
from dpo_dist.storage.records import Message
from tests.conftest import ROOT

FRESH = count()


def words(number: int) -> list[str]:
    """Words that never occurred before."""
    return [f"w{next(FRESH)}" for _ in range(number)]


def said(*parts: list[str], role: str = "user") -> tuple[Message, ...]:
    text = " ".join(word for part in parts for word in part)
    return (Message.model_validate({"role": role, "content": text}),)


@pytest.mark.parametrize(("copied", "expected"), [(17, True), (16, False), (7, False)])
def test_half_of_the_8_grams_are_too_many(copied: int, expected: bool) -> None:
    """27 words have 20 8-grams; 17 words of them in a row have 10."""
    held = words(40)
    training = [said(held[5 : 5 + copied], words(27 - copied)), said(words(27))]
    assert overlaps(training, [said(held), said(words(9))]) == [expected, False]


def test_case_white_space_and_several_held_out_prompts_make_no_difference() -> None:
    first, second = words(14), words(14)
    shouted = (Message(role="user", content="\n".join(first + second).upper()),)
    held = [said(first, words(5)), said(words(5), second)]
    assert overlaps([shouted], held) == [True], "14 of 21, from two prompts"
    assert overlaps([shouted], held[:1]) == [False]


def test_short_prompts_are_only_compared_whole() -> None:
    held = [said(["What", "is", "DPO?"]), said(words(3), ["what", "is", "it"], words(3))]
    assert overlaps([said(["what", "is", "dpo?"]), said(["what", "is", "it"])], held) == [
        True,
        False,
    ]


def test_only_what_users_say_is_compared() -> None:
    system, user = words(30), words(10)
    training = [said(system, role="system") + said(user)]
    assert overlaps(training, [said(system, role="system") + said(words(10))]) == [False]
    assert overlaps(training, [said(words(30), role="system") + said(user)]) == [True]
    turns = (*said(user[:5]), *said(words(20), role="assistant"), *said(user[5:]))
    assert overlaps([turns], [said(user)]) == [True]


def test_a_template_gives_nothing_away_and_hides_nothing() -> None:
    template, secret = words(40), words(12)
    training = [said(template, words(12)) for _ in range(50)]
    training.append(said(template, secret[:10], words(2)))
    held = [said(template, words(12)) for _ in range(20)] + [said(template, secret)]
    assert overlaps(training, held) == [False] * 50 + [True]


def test_what_few_training_prompts_share_is_no_template() -> None:
    passage = words(20)
    held = [said(passage, words(3)), said(passage, words(3))]
    rare = [said(passage, words(3)) for _ in range(5)] + [said(words(23)) for _ in range(45)]
    assert overlaps(rare, held) == [True] * 5 + [False] * 45, "a tenth of them, not more"
    common = [said(passage, words(3)) for _ in range(6)] + rare[5:]
    assert not any(overlaps(common, held))
    assert all(overlaps(common[:6], held[:1])), "in one held-out prompt it is a copy"
    assert overlaps(rare[:1], held) == [True], "nor is it one when there is a single prompt"


@pytest.mark.parametrize("limits", [(640, 160), (224, 64)])
def test_the_demo_keeps_all_of_its_prompts(limits: tuple[int, int]) -> None:
    data = ROOT / "recipes" / "incident_triage" / "data"
    training, held_out = (
        [prompt.messages for prompt in read_prompts(DataSource(path=data / name, limit=limit))]
        for name, limit in zip(("prompts.jsonl", "eval.jsonl"), limits, strict=True)
    )
    assert not any(overlaps(training, held_out))
    assert overlaps(held_out[:3] + training, held_out)[:3] == [True] * 3


@pytest.mark.slow
def test_ultrafeedback_s_size_takes_seconds() -> None:
    random_ = random.Random(0)
    vocabulary = [f"w{int(random_.paretovariate(0.6)) % 50_000}" for _ in range(100_000)]
    training = [said(random_.choices(vocabulary, k=130)) for _ in range(61_000)]
    held_out = [said(random_.choices(vocabulary, k=130)) for _ in range(1_900)] + training[:100]
    started = time.process_time()
    found = overlaps(training, held_out)
    assert found == [True] * 100 + [False] * 60_900
    assert time.process_time() - started < 20, "3 s on a quiet machine"
