"""Every format of docs/data.md is read, or refused by name."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import pytest

from dpo_dist.config import DataPreferences, DataSource
from dpo_dist.data.pair_formats import PAIRS
from dpo_dist.data.preferences import PreferenceSet, load_preferences
from dpo_dist.data.prompts import DEMONSTRATIONS, PROMPTS, read_demonstrations, read_prompts
from dpo_dist.data.rows import write_parquet
from dpo_dist.errors import DataError

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
Q, YES, NO = "what is 1 plus 1?", "It is 2.", "No idea."


def turn(role: str, content: str, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


USER, GOOD, BAD = turn("user", Q), turn("assistant", YES), turn("assistant", NO)
TEXTS = {"chosen": YES, "rejected": NO}
TURNS = {"chosen": [GOOD], "rejected": [BAD]}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: {}\n\nAssistant: {}"
# (format, the columns of a row that means Q: YES > NO)
EQUAL = [
    ("Nectar", {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": [
        {"answer": "Two?", "rank": 2.0}, {"answer": NO, "rank": 3.0}, {"answer": YES, "rank": 1}]}),
    ("TRL, conversational, explicit prompt", {"prompt": [USER], **TURNS}),
    ("TRL, conversational, explicit prompt", {
        "prompt": [turn("user", [{"type": "text", "text": Q}])], **TURNS}),
    ("TRL, conversational, explicit prompt", {
        "prompt": Q, "prompt_id": "a", "messages": [USER, GOOD], "chosen": [USER, GOOD],
        "rejected": [USER, BAD], "score_chosen": 8.0, "score_rejected": 3.0}),
    ("TRL, conversational, explicit prompt", {
        "prompt": Q, "chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}),
    ("TRL, standard, explicit prompt", {"prompt": Q, **TEXTS, "id": 4, "margin": 0.5}),
    ("ShareGPT", {"conversations": [{"from": "human", "value": Q}],
                  "chosen": {"from": "gpt", "value": YES},
                  "rejected": {"from": "gpt", "value": NO}}),
    ("alpaca", {"instruction": Q, "input": "", **TEXTS}),
    ("orca", {"system": "", "question": Q, **TEXTS}),
    ("distilabel's orca", {"input": Q, **TEXTS, "status": "swapped", "generations": [NO, YES]}),
    ("Argilla", {"instruction": Q, "chosen_response": YES, "rejected_response": NO}),
    ("distilabel's UltraFeedback", {
        "instruction": Q, "generations": [NO, "?", YES], "ratings": [1.0, None, 5.0]}),
    ("UltraFeedback", {"instruction": Q, "source": "x", "completions": [
        {"response": YES, "overall_score": 8.5, "model": "m"},
        {"response": NO, "overall_score": 2}]}),
    ("SHP", {"history": Q, "human_ref_A": NO, "human_ref_B": YES, "labels": 0, "post_id": "i"}),
    ("HH-RLHF transcripts", {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {YES}",
                             "rejected": f"\n\nHuman: {Q}\n\nAssistant: {NO}"}),
    ("TRL, conversational, implicit prompt", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    ("TRL, standard, implicit prompt", {"chosen": f"{Q} {YES}", "rejected": f"{Q} {NO}"}),
]  # fmt: skip


def pairs(path: Path, **keys: object) -> PreferenceSet:
    config = DataPreferences(source="path", path=path, validation_fraction=0, **keys)
    return load_preferences(config, Path(), seed=1)


@pytest.mark.parametrize(("name", "row"), EQUAL, ids=[f"{n} {i}" for i, (n, _) in enumerate(EQUAL)])
def test_pairs_are_read_and_their_format_is_named(
    tmp_path: Path, write_jsonl, capsys: pytest.CaptureFixture[str], name: str, row: dict
) -> None:
    (pair,) = pairs(write_jsonl(tmp_path / "p.jsonl", [row])).train
    assert [turn.model_dump() for turn in pair.prompt] == [USER]
    assert (pair.chosen, pair.rejected) == (YES, NO)
    assert f"format: {name}\n" in capsys.readouterr().err


REFUSED = [
    ({"prompt": Q, **TEXTS, "weight": 2.0}, r"p\.jsonl:1: the column `weight` is not used"),
    ({"prompt": Q, "completion": YES, "label": True}, "no prompt has an answer with `label: true`"),
    ({"question": Q, "answer": YES}, r":1: `chosen` is missing.*`answer`, `question`.* orca"),
    ({"prompt": Q, "chosen": [GOOD, USER, GOOD], "rejected": [BAD, USER, BAD]}, "several turns"),
    ({"prompt": [USER, BAD], **TEXTS}, "must end with a user turn"),
    ({"prompt": Q, "chosen": YES, "rejected": [NO, "other"]}, "`rejected` is a list of str"),
    ({"prompt": [turn("user", [{"type": "image"}])], **TURNS}, "part of the type 'image'"),
    ({"prompt": [turn("user", Q, train=False)], **TURNS}, r"`ignore_columns: \[train\]`"),
    ({"system": "a", "prompt": [turn("system", "b"), USER], **TURNS}, "different system messages"),
    ({"prompt": Q, **TEXTS, "status": "odd"}, "`status` is 'odd'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_pairs_that_cannot_be_used_whole_are_refused(
    tmp_path: Path, write_jsonl, row: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pairs(write_jsonl(tmp_path / "p.jsonl", [row]))


def test_everything_in_a_row_reaches_the_pair(tmp_path: Path, write_jsonl) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {
        "system": "Be brief.",
        "prompt": [USER, turn("assistant", "", tool_calls=[call]), turn("tool", "2")],
        "chosen": [turn("assistant", YES, reasoning_content="1 + 1 = 2")],
        "rejected": [BAD],
        "tools": json.dumps(TOOLS),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    (pair,) = pairs(write_jsonl(tmp_path / "p.jsonl", [row])).train
    assert [turn.role for turn in pair.prompt] == ["system", "user", "assistant", "tool"]
    assert json.loads(pair.prompt[2].tool_calls)[0]["function"]["arguments"] == {"a": 1}
    assert json.loads(pair.prompt[-1].tools) == TOOLS
    assert json.loads(pair.prompt[-1].chat_template_kwargs) == {"enable_thinking": False}
    assert pair.answers[0].reasoning_content == "1 + 1 = 2" and pair.answers[1] == NO


def test_what_has_no_preference_is_counted(tmp_path: Path, write_jsonl) -> None:
    rows = [
        {"prompt": Q, **TEXTS, "status": "tie"},
        {"prompt": Q, **TEXTS, "margin": 1},
        {"prompt": "another", **TEXTS, "score_chosen": 9, "score_rejected": 2},
        {"instruction": Q, "generations": [YES, NO], "ratings": [3, 3]},
        {"chosen": HH.format(Q, YES), "rejected": HH.format("different", NO)},
    ]
    found = pairs(write_jsonl(tmp_path / "p.jsonl", rows[:4]), min_margin=2)
    assert [pair.prompt[0].content for pair in found.train] == ["another"]
    assert found.dropped == {"tie": 2, "below_min_margin": 1}
    with pytest.raises(DataError, match="'different_prompts': 1"):
        pairs(write_jsonl(tmp_path / "hh.jsonl", rows[4:]))


def test_all_pairs_of_ranked_answers_and_pairs_of_labels(tmp_path: Path, write_jsonl) -> None:
    answers = [{"answer": text, "rank": rank} for text, rank in ((YES, 1), ("b", 2), (NO, 3))]
    path = write_jsonl(tmp_path / "n.jsonl", [{"prompt": Q, "answers": answers}])
    found = [(pair.chosen, pair.rejected) for pair in pairs(path, pairs="all").train]
    assert found == [(YES, "b"), (YES, NO), ("b", NO)]
    labels = [(Q, NO, False), ("lonely", YES, True), (Q, YES, True)]
    rows = [{"prompt": p, "completion": c, "label": label} for p, c, label in labels]
    read = pairs(write_jsonl(tmp_path / "k.jsonl", rows))
    assert [(pair.chosen, pair.rejected) for pair in read.train] == [(YES, NO)]
    assert read.dropped == {"unpaired": 1}


ROWS = [{"prompt": f"{Q} {n}", **TEXTS} for n in range(4)]


def _csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def _saved(path: Path, *, splits: bool = False) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"train": rows}) if splits else rows).save_to_disk(str(path))


def _folder(path: Path) -> None:
    path.mkdir()
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        (path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


LINES = "\n".join(map(json.dumps, ROWS))
FILES = {
    "p.jsonl": lambda path: path.write_text(LINES),
    "p.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "p.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "p.csv": _csv,
    "p.parquet": lambda path: write_parquet(path, ROWS),
    "folder": _folder,
    "saved": _saved,
    "saved_splits": lambda path: _saved(path, splits=True),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    found = pairs(tmp_path / name).train
    assert [(p.prompt[0].content, p.chosen, p.rejected) for p in found] == [
        (f"{Q} {n}", YES, NO) for n in range(4)
    ]


def test_globs_and_splits_of_folders(tmp_path: Path) -> None:
    _folder(tmp_path / "a")
    assert len(pairs(tmp_path / "a" / "*.jsonl").train) == 4
    for number, split in enumerate(("train", "test")):
        (tmp_path / "a" / f"{number}.jsonl").rename(tmp_path / "a" / f"{split}.jsonl")
    with pytest.raises(DataError, match="choose a `split` of this folder: train, test"):
        pairs(tmp_path / "a")
    assert len(pairs(tmp_path / "a", split="test").train) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'[{"prompt": "a"},\n {]', r"p\.json:2: not JSON"),
        ("p.json", b'[{"prompt": "a"},\n\n 3]', r"p\.json:3: expected an object, found int"),
        ("p.json", b'[{"prompt": "a"},]', "not JSON: Illegal trailing comma"),
        ("p.csv", b'prompt,id\n"a\nb",1\nc\n', r"p\.csv:4: expected 2 columns"),
        ("p.csv", b"prompt,id\n\xff,1\n", r"p\.csv.*not UTF-8"),
        ("p.jsonl.gz", b"nothing", "not a whole gzip file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(DataSource(path=tmp_path / name))


def test_columns_are_mapped_or_ignored(tmp_path: Path, write_jsonl) -> None:
    row = {"ask": Q, "good": YES, "rejected": NO, "weight": 2}
    path = write_jsonl(tmp_path / "p.jsonl", [row])
    columns = {"prompt": "ask", "chosen": "good"}
    (pair,) = pairs(path, columns=columns, ignore_columns=["weight"]).train
    assert (pair.prompt[0].content, pair.chosen) == (Q, YES)
    with pytest.raises(DataError, match="`columns` names `asks`; the row has ask, good"):
        pairs(path, columns={"prompt": "asks"})


PROMPT_ROWS = [
    ("prompts", {"prompt": Q, "reference": "gold"}),
    ("prompts", {"prompt": Q, "prompt_id": "0", "messages": [USER, GOOD]}),
    ("messages", {"messages": [USER]}),
    ("messages", {"messages": [USER, GOOD]}),
    ("ShareGPT", {"conversations": [{"from": "human", "value": Q}]}),
    ("alpaca", {"instruction": Q, "input": "", "output": YES}),
    ("questions", {"question": Q}),
]


@pytest.mark.parametrize(("name", "row"), PROMPT_ROWS)
def test_prompts_are_read(tmp_path: Path, write_jsonl, capsys, name: str, row: dict) -> None:
    (prompt,) = read_prompts(DataSource(path=write_jsonl(tmp_path / "p.jsonl", [row])))
    assert [turn.model_dump() for turn in prompt.messages] == [USER]
    assert prompt.reference == ({"text": "gold"} if "reference" in row else {})
    assert f"format: {name}\n" in capsys.readouterr().err


SFT_ROWS = [
    ("prompts and completions", {"prompt": Q, "completion": YES}),
    ("messages", {"messages": [USER, GOOD], "prompt": Q}),
    ("ShareGPT", {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": YES}]}),
    ("alpaca", {"instruction": Q, "input": "", "output": YES}),
    ("orca", {"system_prompt": "", "question": Q, "response": YES}),
]


@pytest.mark.parametrize(("name", "row"), SFT_ROWS)
def test_demonstrations_are_read(tmp_path: Path, write_jsonl, capsys, name: str, row: dict) -> None:
    (found,) = read_demonstrations(DataSource(path=write_jsonl(tmp_path / "s.jsonl", [row])))
    assert [turn.model_dump() for turn in (*found.prompt, found.completion)] == [USER, GOOD]
    assert f"format: {name}\n" in capsys.readouterr().err


def test_every_assistant_turn_is_demonstrated_and_texts_alone_are_refused(
    tmp_path: Path, write_jsonl
) -> None:
    again = [USER, GOOD, turn("user", "sure?"), turn("assistant", "Yes.")]
    path = write_jsonl(tmp_path / "s.jsonl", [{"messages": again, "tools": TOOLS}])
    first, second = read_demonstrations(DataSource(path=path))
    assert [len(first.prompt), len(second.prompt)] == [1, 3]
    assert (first.completion.content, second.completion.content) == (YES, "Yes.")
    assert json.loads(first.prompt[-1].tools) == json.loads(second.prompt[-1].tools) == TOOLS
    with pytest.raises(DataError, match=r"`messages` is missing.*the row has `text`"):
        read_demonstrations(DataSource(path=write_jsonl(tmp_path / "t.jsonl", [{"text": Q}])))


def test_a_mixture_has_its_weights_and_adds_up(tmp_path: Path, write_jsonl) -> None:
    def config(**weights: float) -> DataPreferences:
        mixture = [{"path": tmp_path / f"{n}.jsonl", "weight": w} for n, w in weights.items()]
        return DataPreferences(source="mixture", mixture=mixture, validation_fraction=0)

    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"a {n}", **TEXTS} for n in range(10)])
    rows = [{"prompt": f"b {n}", **TEXTS} for n in range(30)]
    write_jsonl(tmp_path / "b.jsonl", [*rows, {"prompt": "a 0", "chosen": NO, "rejected": YES}])
    found = load_preferences(config(a=1, b=2), Path(), seed=1)
    a, b = found.sources
    assert (a.kept, a.dropped) == (9, {"contradiction": 1})
    assert (b.kept, b.dropped) == (18, {"contradiction": 1, "not_drawn": 12})
    assert len(found.train) + found.dropped.total() == 41
    assert found == load_preferences(config(a=1, b=2), Path(), seed=1)
    assert found.train != load_preferences(config(a=1, b=2), Path(), seed=2).train
    with pytest.raises(DataError, match=r"b\.jsonl: its weight 0.001 leaves no pair"):
        load_preferences(config(a=1, b=0.001), Path(), seed=1)


def test_the_document_lists_every_format_in_order() -> None:
    rows = re.findall(
        r"^\| (pairs|prompts|demonstrations) \| ([^|]+) \|", DOCUMENT.read_text(), re.M
    )
    assert rows == [
        *(("pairs", known.name) for known in PAIRS),
        *(("prompts", known.name) for known in PROMPTS),
        *(("demonstrations", known.name) for known in DEMONSTRATIONS),
    ]
