from pathlib import Path

import pytest

from dpo_dist.config import DataSource
from dpo_dist.data.prompts import (
    check_disjoint,
    read_demonstrations,
    read_prompts,
    split_prompts,
)
from dpo_dist.data.rows import write_parquet
from dpo_dist.errors import DataError
from dpo_dist.storage.records import Message, Prompt


def test_texts_and_conversations_are_read(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"id": 7, "prompt": "hello", "reference": {"severity": "SEV1"}},
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
        ],
    )
    first, second = read_prompts(DataSource(path=path))
    assert first.id == "7"
    assert first.messages == (Message(role="user", content="hello"),)
    assert first.reference == {"severity": "SEV1"}
    assert [m.role for m in second.messages] == ["system", "user"]
    assert len(second.id) == 16, "a missing id is derived from the content"


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"id": "a", "prompt": "x"}])
    assert read_prompts(DataSource(path=path))[0].id == "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"prompt": "a"}\n{"text": "b"}\n',
            r"p\.jsonl:2: `prompt` is missing.*the row has `text`",
        ),
        (b'{"prompt": ""}\n', r"p\.jsonl:1: `prompt` ends with an empty turn"),
        (b'{"id": 1, "prompt": "a"}\n\n{"id": 1, "prompt": "b"}\n', r":3: the id '1' .*jsonl:1"),
        (b'{"prompt": "\xff"}\n', r"p\.jsonl:1: not UTF-8"),
        (b"{]\n", r"p\.jsonl:1: not JSON"),
        (b"[1]\n", r"p\.jsonl:1: expected an object, found int"),
        (b"", r"p\.jsonl: no rows"),
        (b'{"prompt": "a\\u0000b"}\n', r"p\.jsonl:1: .*NUL"),
        (b'{"prompt": "a\\ud800b"}\n', r"p\.jsonl:1: .*surrogate"),
        (b'{"id": "\\udc00", "prompt": "a"}\n', r"p\.jsonl:1: `id` .*surrogate"),
        (b'{"prompt": "a", "reference": {"b": ["\\ud800"]}}\n', r":1: `reference` .*surrogate"),
        (
            b'{"prompt": [{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}',
            r"must end with a user turn",
        ),
        (b'{"prompt": [{"role": "robot", "content": "q"}]}', r"has a turn that is not"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(DataSource(path=path))


def test_a_missing_file_and_a_strange_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_prompts(DataSource(path=tmp_path / "absent.jsonl"))
    (tmp_path / "x.xlsx").write_text("a")
    with pytest.raises(DataError, match=r"unknown kind of file; known are \.jsonl"):
        read_prompts(DataSource(path=tmp_path / "x.xlsx"))


def test_a_held_out_prompt_in_training_is_refused(tmp_path: Path, write_jsonl) -> None:
    train = read_prompts(DataSource(path=write_jsonl(tmp_path / "a.jsonl", [{"prompt": "A b"}])))
    held = read_prompts(DataSource(path=write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a  B "}])))
    with pytest.raises(DataError, match="proves nothing"):
        check_disjoint(train, held)


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud83d\\ude42"}')
    (prompt,) = read_prompts(DataSource(path=tmp_path / "p.jsonl"))
    assert prompt.messages[0].content == "🙂"


@pytest.mark.parametrize("key", ["prompt", "completion"])
@pytest.mark.parametrize("text", ["a\0b", "\udfff"])
def test_demonstrations_that_cannot_be_encoded_are_named(
    tmp_path: Path, write_jsonl, key: str, text: str
) -> None:
    row = {"prompt": "q", "completion": "a"}
    path = write_jsonl(tmp_path / "s.jsonl", [row, row | {key: text}])
    with pytest.raises(DataError, match=rf"s\.jsonl:2: `{key}` holds a NUL .* surrogate"):
        read_demonstrations(DataSource(path=path))


def test_demonstrations_end_with_an_assistant_turn(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "s.jsonl", [{"prompt": "q", "completion": "a"}])
    (row,) = read_demonstrations(DataSource(path=path))
    assert row.completion == Message(role="assistant", content="a")
    turns = [{"role": "user", "content": "q"}]
    path = write_jsonl(tmp_path / "s.jsonl", [{"prompt": "q", "completion": turns}])
    with pytest.raises(DataError, match="must begin and end with assistant turns"):
        read_demonstrations(DataSource(path=path))


def test_prompts_that_differ_by_case_are_two(tmp_path: Path, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x = True"}, {"prompt": "x = true"}])
    first, second = read_prompts(DataSource(path=path))
    assert first.id != second.id
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "same"}, {"prompt": "same"}])
    with pytest.raises(DataError, match=r"p\.jsonl:2: the prompt is the same as that of .*:1;"):
        read_prompts(DataSource(path=path))


def prompts(*texts: str) -> list[Prompt]:
    return [
        Prompt(id=f"{n}", messages=(Message(role="user", content=text),))
        for n, text in enumerate(texts)
    ]


def test_a_split_is_disjoint_and_complete_and_follows_the_content() -> None:
    given = prompts(*(f"question {n}" for n in range(50)))
    parts = split_prompts(given, 4, seed=1)
    assert sorted(map(len, parts)) == [12, 12, 13, 13]
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in given)
    assert all([int(p.id) for p in part] == sorted(int(p.id) for p in part) for part in parts)
    # Another order and other names: the same texts in the same parts.
    turned = [p.model_copy(update={"id": f"x{p.id}"}) for p in reversed(given)]
    assert [{p.messages for p in part} for part in split_prompts(turned, 4, seed=1)] == [
        {p.messages for p in part} for part in parts
    ]
    assert split_prompts(given, 4, seed=2) != parts


def test_a_split_keeps_what_says_the_same_together() -> None:
    parts = split_prompts(prompts("a b", "c", "A  b", "d", "a b"), 3, seed=0)
    (with_twins,) = [part for part in parts if len(part) > 1]
    assert [prompt.id for prompt in with_twins] == ["0", "2", "4"]
    with pytest.raises(DataError, match="3 distinct prompts cannot be split into 4 parts"):
        split_prompts(prompts("a b", "c", "A  b", "d"), 4, seed=0)
