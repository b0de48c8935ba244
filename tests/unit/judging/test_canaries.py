"""Canaries have the right answer that they claim to have, and a judge's mistakes fail them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.errors import DataError
from dpo_dist.judging.canaries import (
    DRAWN,
    INSTRUCTION,
    LABELS,
    Canary,
    canary_results,
    drawn_canaries,
    own_canaries,
)
from dpo_dist.judging.judge import Comparison
from dpo_dist.judging.panel import orders
from dpo_dist.judging.planted import Decision, PlantedJudge, always, obeys, prefers_length
from dpo_dist.storage.records import BallotOutcome, Message, PreferencePair, Prompt


def rows(
    count: int, chosen: Callable[[int], str] = "chosen {}".format
) -> tuple[list[PreferencePair], dict[str, Prompt]]:
    """Pairs of as many prompts, whose references take three values in turn."""
    prompts = {
        f"p{n}": Prompt(
            id=f"p{n}",
            messages=(Message(role="user", content=f"question {n}"),),
            reference={"level": n % 3},
        )
        for n in range(count)
    }
    pairs = [
        PreferencePair(
            prompt_id=prompt.id, prompt=prompt.messages, chosen=chosen(n), rejected=f"bad {n}"
        )
        for n, prompt in enumerate(prompts.values())
    ]
    return pairs, prompts


def by_kind(canaries: list[Canary]) -> dict[str, list[Canary]]:
    return {kind: [c for c in canaries if c.kind == kind] for kind in LABELS}


def test_every_kind_is_made_of_the_pairs_own_texts() -> None:
    pairs, prompts = rows(30)
    found = by_kind(drawn_canaries(pairs, prompts, per_kind=4, seed=1))
    assert {kind: len(canaries) for kind, canaries in found.items()} == {
        **dict.fromkeys(DRAWN, 4),
        "own": 0,
    }
    for kind, canaries in found.items():
        for canary in canaries:
            comparison = canary.comparison
            name, n = re.fullmatch(r"canary:(\w+):p(\d+)", comparison.prompt.id).groups()
            assert name == kind and comparison.prompt.messages == prompts[f"p{n}"].messages
            assert comparison.prompt.reference == prompts[f"p{n}"].reference
            assert (comparison.first, comparison.second, comparison.first_text) == (
                "right",
                "wrong",
                f"chosen {n}",
            )
            if kind == "other_prompt":
                other = int(re.fullmatch(r"chosen (\d+)", comparison.second_text).group(1))
                assert other % 3 != int(n) % 3, "as right here as there, were it the same"
                continue
            assert (
                comparison.second_text
                == {
                    "identical": f"chosen {n}",
                    "empty": "",
                    "padded": f"chosen {n}\n\nchosen {n}",
                    "injection": f"bad {n}\n\n{INSTRUCTION}",
                }[kind]
            )


def test_few_more_rows_change_few_canaries_and_another_seed_changes_them() -> None:
    def asked(count: int, seed: int) -> set[tuple[str, str, str]]:
        drawn = drawn_canaries(*rows(count), per_kind=4, seed=seed)
        return {
            (c.comparison.prompt.id, c.comparison.first_text, c.comparison.second_text)
            for c in drawn
        }

    assert len(asked(200, 1)) == 20
    assert len(asked(200, 1) & asked(210, 1)) >= 16
    assert len(asked(200, 1) & asked(200, 2)) <= 4
    shuffled = list(reversed(rows(200)[0]))
    drawn = drawn_canaries(shuffled, rows(200)[1], per_kind=4, seed=1)
    assert {
        (c.comparison.prompt.id, c.comparison.first_text, c.comparison.second_text) for c in drawn
    } == asked(200, 1)


def test_there_are_as_many_as_the_pairs_allow() -> None:
    def counted(canaries: list[Canary]) -> dict[str, int]:
        return {kind: len(group) for kind, group in by_kind(canaries).items() if group}

    pairs, prompts = rows(2)
    assert counted(drawn_canaries(pairs, prompts, per_kind=4, seed=1)) == dict.fromkeys(DRAWN, 2)
    same, prompts = rows(9, chosen=lambda n: "all  the same" if n % 2 else "all the same")
    found = counted(drawn_canaries(same, prompts, per_kind=4, seed=1))
    assert found == {kind: 4 for kind in DRAWN if kind != "other_prompt"}
    assert drawn_canaries(pairs, prompts, per_kind=0, seed=1) == []


def examined(decide: Decision) -> dict[str, tuple[int, int, int]]:
    """(passed, of how many, without a comparison) by kind, asked in both orders."""
    canaries = drawn_canaries(*rows(30), per_kind=4, seed=1)
    judge = PlantedJudge("p", decide, seed=0)
    asked = [c for canary in canaries for c in orders(canary.comparison, both_orders=True, seed=0)]
    ballots = [ballot for group in judge.compare(asked) for ballot in group]
    return {m.kind: (m.passed, m.n, m.not_compared) for m in canary_results(canaries, ballots)}


def sound(comparison: Comparison) -> BallotOutcome:
    """Knows each prompt's own number, and that less is more."""
    number = comparison.prompt.messages[0].content.split()[-1]
    worth = [
        (text.split()[:2] == ["chosen", number]) - 0.1 * text.count("chosen")
        for text in (comparison.first_text, comparison.second_text)
    ]
    return "tie" if worth[0] == worth[1] else "first" if worth[0] > worth[1] else "second"


@pytest.mark.parametrize(
    ("decide", "failing"),
    [
        (sound, {}),
        (prefers_length, {"padded": 0, "injection": 0, "other_prompt": None}),
        (obeys, {"injection": 0, "other_prompt": None, "empty": None}),
        (always("first"), dict.fromkeys(DRAWN, 0)),
        (always("tie"), {"empty": 0, "injection": 0, "other_prompt": 0}),
    ],
)
def test_a_judge_fails_the_canaries_of_its_own_mistake(decide: Decision, failing: dict) -> None:
    """None: whether it passes is a matter of the texts."""
    for kind, (passed, n, not_compared) in examined(decide).items():
        assert (n, not_compared) == (4, 0)
        expected = failing.get(kind, 4)
        assert expected is None or passed == expected, kind


def test_what_was_not_compared_has_failed_and_is_counted_apart() -> None:
    def half(comparison: Comparison) -> BallotOutcome:
        return "refusal" if comparison.first == "wrong" else sound(comparison)

    # The same answer twice is asked about once: one ballot stands for both orders.
    found = examined(half)
    assert found.pop("identical")[1:] == (4, 4)
    assert set(found.values()) == {(0, 4, 4)}


def test_a_tie_passes_where_the_padded_answer_is_the_same_answer() -> None:
    def mixed(comparison: Comparison) -> BallotOutcome:
        return "first" if comparison.first == "right" else "tie"

    assert examined(mixed)["padded"] == (4, 4, 0)
    assert examined(mixed)["empty"] == (0, 4, 0)


OWN = {"name": "n", "prompt": "q", "good": "g", "bad": "b"}


def test_own_canaries_are_read_as_they_stand(tmp_path: Path, write_jsonl) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    more = {**OWN, "name": "m", "prompt": turns, "reference": {"level": 2}}
    first, second = own_canaries(write_jsonl(tmp_path / "c.jsonl", [OWN, more]))
    assert (first.kind, first.comparison.prompt.id) == ("own", "canary:own:n")
    assert (first.comparison.first_text, first.comparison.second_text) == ("g", "b")
    assert first.comparison.prompt.messages == (Message(role="user", content="q"),)
    assert [m.role for m in second.comparison.prompt.messages] == ["system", "user"]
    assert second.comparison.prompt.reference == {"level": 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": ""}, "`name` is missing or empty"),
        ({"prompt": None}, "`prompt` is missing or empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "must end with a user turn"),
        ({"good": 3}, "`good` is missing or empty"),
        ({"bad": " "}, "`bad` is missing or empty"),
        ({"bad": "g"}, "`good` and `bad` are identical"),
        ({"bad": "\0"}, "holds a NUL"),
        ({"reference": [1]}, "`reference` must be a text or an object"),
        ({"reference": {"level": "\ud800"}}, "`reference` holds .* an unpaired surrogate"),
        ({}, r"the name 'n' is a duplicate; first used at .*c\.jsonl:1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, write_jsonl, row: dict, message: str) -> None:
    good = OWN if row == {} else {**OWN, "name": "other"}
    path = write_jsonl(tmp_path / "c.jsonl", [good, {**OWN, **row}])
    with pytest.raises(DataError, match=rf"c\.jsonl:2: .*{message}"):
        own_canaries(path)


def test_several_pairs_of_a_prompt_make_one_canary_of_a_kind() -> None:
    pairs, prompts = rows(6)
    more = [
        pair.model_copy(update={"chosen": f"{pair.chosen} {name}", "rejected": pair.chosen})
        for pair in pairs
        for name in ("again", "anew")
    ]
    every = sorted([*pairs, *more], key=lambda pair: pair.prompt_id)
    drawn = drawn_canaries(every, prompts, per_kind=4, seed=1)
    assert drawn == drawn_canaries(pairs, prompts, per_kind=4, seed=1)
    assert len({canary.comparison.prompt.id for canary in drawn}) == len(drawn) == 4 * len(DRAWN)
