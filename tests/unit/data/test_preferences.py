from pathlib import Path

import pytest

from dpo_dist.config import DataPreferences, JudgedPreferences, UltraFeedbackPreferences
from dpo_dist.data.preferences import (
    JUDGED_FILE,
    PreferenceSet,
    load_preferences,
    packed,
    preference_sources,
    write_pairs,
)
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, PreferencePair, Prompt, Sampled
from tests.conftest import REAL_PREFERENCES


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ultrafeedback_row(n: int, chosen: str = "good", rejected: str = "bad") -> dict:
    ask = turn("user", f"question {n}")
    return {
        "prompt": f"question {n}",
        "prompt_id": f"id-{n}",
        "chosen": [ask, turn("assistant", chosen)],
        "rejected": [ask, turn("assistant", rejected)],
        "score_chosen": 9.0,
    }


def test_the_columns_of_ultrafeedback_are_read(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [ultrafeedback_row(n) for n in range(10)])
    pairs = load_preferences(
        DataPreferences(source="path", path=path, validation_fraction=0.2), tmp_path, seed=1
    )
    assert len(pairs.train) == 8 and len(pairs.validation) == 2
    pair = pairs.train[0]
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert pair.prompt == (Message(role="user", content=pair.prompt[0].content),)


def test_no_prompt_is_in_both_splits(tmp_path: Path, write_jsonl) -> None:
    rows = [ultrafeedback_row(n % 20, chosen=f"good {n}") for n in range(100)]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    for seed in range(5):
        config = DataPreferences(source="path", path=path, validation_fraction=0.3)
        pairs = load_preferences(config, tmp_path, seed)
        train = {p.prompt[0].content for p in pairs.train}
        validation = {p.prompt[0].content for p in pairs.validation}
        assert not train & validation and len(validation) == 6


def test_a_prompt_held_out_in_a_round_is_trained_on_in_none(tmp_path: Path, write_jsonl) -> None:
    rows = [ultrafeedback_row(n, chosen=f"good {n}") for n in range(200)]
    trained: set[str] = set()
    held_out: set[str] = set()
    for number, kept in enumerate((rows, rows[::2], rows[1::3])):
        path = write_jsonl(tmp_path / f"{number}.jsonl", kept)
        config = DataPreferences(source="path", path=path, validation_fraction=0.25)
        pairs = load_preferences(config, tmp_path, 3, same_in_every_round=True)
        trained |= {p.prompt[0].content for p in pairs.train}
        held_out |= {p.prompt[0].content for p in pairs.validation}
        assert 0.15 < len(pairs.validation) / len(kept) < 0.35
    assert not trained & held_out and len(trained | held_out) == 200


def test_ultrafeedback_never_mixes_test_prefs_into_training(tmp_path: Path) -> None:
    (train,), validation = preference_sources(
        UltraFeedbackPreferences(source="ultrafeedback", limit=200), tmp_path
    )
    assert (train.split, train.limit) == ("train_prefs", 200)
    assert validation.split == "test_prefs"


def test_useless_pairs_are_dropped_and_counted(tmp_path: Path, write_jsonl) -> None:
    rows = [
        ultrafeedback_row(0),
        ultrafeedback_row(1, "same", "same"),
        ultrafeedback_row(2, "good", " "),
        ultrafeedback_row(3, "good", "bad<|im_end|>"),
        ultrafeedback_row(4, "[INST] good", "bad"),
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    config = DataPreferences(source="path", path=path, validation_fraction=0)
    pairs = load_preferences(config, tmp_path, seed=1)
    assert len(pairs.train) == 1
    assert pairs.dropped == {"identical": 1, "empty": 1, "control_token": 2}


def read(path: Path, held_out: list[str] | None = None) -> PreferenceSet:
    config = DataPreferences(source="path", path=path, validation_fraction=0)
    prompts = [
        Prompt(id=f"h{n}", messages=(Message(role="user", content=text),))
        for n, text in enumerate(held_out or [])
    ]
    return load_preferences(config, path.parent, seed=1, held_out=prompts)


def test_a_file_that_contradicts_itself_teaches_neither_and_nothing_twice(
    tmp_path: Path, write_jsonl
) -> None:
    rows = [
        ultrafeedback_row(0, "A", "B"),
        ultrafeedback_row(1, "A", "B"),
        ultrafeedback_row(2, "A", "B"),
        ultrafeedback_row(1, "B", "A"),
        ultrafeedback_row(2, "A", "B"),
        ultrafeedback_row(1, "A", "B"),
        ultrafeedback_row(2, "A", "C"),
        ultrafeedback_row(2, "C", "B"),
    ]
    pairs = read(write_jsonl(tmp_path / "p.jsonl", rows))
    kept = [(pair.prompt_id, pair.chosen, pair.rejected) for pair in pairs.train]
    assert kept == [("id-0", "A", "B"), ("id-2", "A", "B"), ("id-2", "A", "C"), ("id-2", "C", "B")]
    assert pairs.dropped == {"duplicate": 2, "contradiction": 2}
    assert len(kept) + sum(pairs.dropped.values()) == len(rows)


def test_pairs_on_evaluation_prompts_are_dropped(tmp_path: Path, write_jsonl) -> None:
    long = "please explain how a bicycle stays upright while it is moving slowly"
    rows = [ultrafeedback_row(n) for n in range(3)] + [ultrafeedback_row(1, "fine", "worse")]
    rows.append({"prompt": f"{long} uphill", "chosen": "good", "rejected": "bad"})
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    pairs = read(path, ["Question  1", long])
    assert [pair.prompt_id for pair in pairs.train] == ["id-0", "id-2"]
    assert pairs.dropped == {"evaluation_overlap": 3}
    assert len(read(path).train) == 5, "without an evaluation nothing is held out"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("key", ["prompt", "prompt_id", "chosen", "rejected"])
def test_text_that_no_file_can_carry_is_named(
    tmp_path: Path, write_jsonl, key: str, text: str
) -> None:
    row = {"prompt": "q", "prompt_id": "i", "chosen": "good", "rejected": "bad"}
    path = write_jsonl(tmp_path / "p.jsonl", [row, row | {key: text}])
    with pytest.raises(DataError, match=rf"p\.jsonl:2: `{key}` holds a NUL .* surrogate"):
        read(path)
    turns = [turn("user", "q"), turn("assistant", text)]
    path = write_jsonl(tmp_path / "p.jsonl", [ultrafeedback_row(0) | {"rejected": turns}])
    with pytest.raises(DataError, match=r"p\.jsonl:1: `rejected` holds a NUL"):
        read(path)


def test_a_leaked_validation_prompt_is_dropped(tmp_path: Path, write_jsonl) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", [ultrafeedback_row(n) for n in range(3)])
    validation = write_jsonl(tmp_path / "v.jsonl", [ultrafeedback_row(n) for n in (2, 3)])
    config = DataPreferences(source="path", path=train, validation={"path": validation})
    pairs = load_preferences(config, tmp_path, seed=1)
    assert [p.prompt[0].content for p in pairs.validation] == ["question 3"]
    assert pairs.dropped["validation_leak"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, r"p\.jsonl:1: `chosen` is missing"),
        ({"chosen": [turn("user", "q")]}, "must end with an assistant turn"),
        (
            {"chosen": [turn("robot", "4"), turn("assistant", "good")]},
            "`chosen` has a turn that is not",
        ),
        (
            {"rejected": [turn("user", "another"), turn("assistant", "bad")]},
            "does not hold the row's prompt",
        ),
        ({"prompt": None, "chosen": "good", "rejected": "bad"}, "there is no `prompt`"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, write_jsonl, change: dict, message: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [ultrafeedback_row(0) | change])
    with pytest.raises(DataError, match=message):
        load_preferences(DataPreferences(source="path", path=path), tmp_path, seed=1)


def test_judged_pairs_survive_the_way_through_parquet(tmp_path: Path) -> None:
    pair = PreferencePair(
        prompt_id="p",
        prompt=(Message(role="system", content="s"), Message(role="user", content="u")),
        chosen="yes ü\n",
        rejected="no",
    )
    seen = pair.model_copy(
        update={
            "prompt": (Message(role="user", content="another"),),
            "sampled": Sampled(
                prompt=packed([1, 2, 128_000]),
                chosen=packed([3, 4]),
                rejected=packed([5]),
                chosen_log_prob=-1.25,
                rejected_log_prob=-0.1,
            ),
        }
    )
    write_pairs(tmp_path / JUDGED_FILE, [pair, seen])
    loaded = load_preferences(JudgedPreferences(validation_fraction=0), tmp_path, seed=1)
    assert loaded.train == [pair, seen]


def test_pairs_from_outside_the_run_were_not_sampled(tmp_path: Path, write_jsonl) -> None:
    row = ultrafeedback_row(0) | {"sampled": {"prompt": [1], "chosen": [2], "rejected": [3]}}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    config = DataPreferences(source="path", path=path, validation_fraction=0)
    (pair,) = load_preferences(config, tmp_path, seed=1).train
    assert pair.sampled is None


@pytest.mark.skipif(not REAL_PREFERENCES.exists(), reason="the real rows are not here")
def test_real_rows_are_read_whole() -> None:
    config = DataPreferences(source="path", path=REAL_PREFERENCES)
    pairs = load_preferences(config, Path(), seed=1)
    total = len(pairs.train) + len(pairs.validation) + sum(pairs.dropped.values())
    assert total == 1797
    assert len({p.prompt_id for p in pairs.train + pairs.validation}) == 599


def test_all_pairs_of_a_prompt_are_kept_and_stay_on_one_side(tmp_path: Path) -> None:
    written = [
        PreferencePair(
            prompt_id=f"p{n}",
            prompt=(Message(role="user", content=f"question {n}"),),
            chosen=chosen,
            rejected=rejected,
        )
        for n in range(20)
        for chosen, rejected in (("A", "B"), ("B", "C"), ("A", "C"))
    ]
    write_pairs(tmp_path / JUDGED_FILE, written)
    for seed in range(5):
        config = JudgedPreferences(validation_fraction=0.25)
        pairs = load_preferences(config, tmp_path, seed)
        assert pairs.dropped == {}
        assert (len(pairs.train), len(pairs.validation)) == (45, 15)
        sides = [{pair.prompt_id for pair in side} for side in (pairs.train, pairs.validation)]
        assert len(sides[1]) == 5 and not sides[0] & sides[1]
