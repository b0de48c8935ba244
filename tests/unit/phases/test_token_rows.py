"""Pairs on their way into a file of token ids."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dpo_dist.data.preferences import packed
from dpo_dist.phases.token_rows import token_rows, write_token_rows
from dpo_dist.storage.records import Message, PreferencePair, Sampled
from tests.tiny import make_tokenizer


def pair(name: str, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    messages = (Message(role="user", content=prompt),)
    return PreferencePair(prompt_id=name, prompt=messages, chosen=chosen, rejected=rejected)


def test_pairs_that_do_not_fit_are_counted_by_reason_and_never_cut() -> None:
    dropped: Counter[str] = Counter()
    pairs = [
        pair("kept", "hi", "yes", "no"),
        pair("long answer", "hi", "yes " * 30, "no"),
        pair("long prompt", "hi " * 60, "yes", "no"),
        pair("same", "hi", "yes", "yes"),
    ]
    (row,) = token_rows(make_tokenizer(), pairs, 100, dropped)
    assert dropped == {"too_long": 1, "prompt_too_long": 1, "identical": 1}
    assert row["id"] == "kept"
    lengths = [len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")]
    assert row["tokens"] == sum(lengths) and min(lengths) > 0
    assert len(row["row"]) == 64


def test_a_row_is_the_same_row_in_another_run() -> None:
    keys = {
        row["row"]
        for name in ("a", "b")
        for row in token_rows(make_tokenizer(), [pair(name, "hi", "yes", "no")], 100, Counter())
    }
    assert keys == {"411cfa9900fad56cab6d8f4fc6a264312155d8e83636316dac1893b04a654cbc"}, (
        "the reference's log-probs are found again under another id, and by a later version"
    )


def test_what_was_sampled_is_what_is_trained_whatever_its_text() -> None:
    """Other tokens of the same text, another prompt than the template's, and the engine's
    log-probs; a pair from elsewhere in between is rendered."""
    tokenizer, elsewhere = make_tokenizer(), pair("b", "hi", "yes", "no")
    sampled = Sampled(
        prompt=packed([9, 9, 40]),
        chosen=packed([50, 51, 2]),
        rejected=packed([60, 2]),
        chosen_log_prob=-2.5,
        rejected_log_prob=math.nan,
    )
    pairs = [elsewhere, elsewhere.model_copy(update={"prompt_id": "a", "sampled": sampled})]
    rendered, row = token_rows(tokenizer, pairs, 100, Counter())
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [row[name].tolist() for name in names] == [[9, 9, 40], [50, 51, 2], [60, 2]]
    assert row["chosen_witness"] == -2.5 and math.isnan(row["rejected_witness"])
    assert (rendered["id"], tokenizer.decode(rendered["chosen_ids"])) == ("b", "yes<|im_end|>")
    assert math.isnan(rendered["chosen_witness"])


def test_without_a_plain_slot_the_prompt_is_rendered() -> None:
    tokenizer, elsewhere = make_tokenizer(), pair("a", "hi", "yes", "no")
    sampled = Sampled(
        prompt=b"",
        chosen=packed([5, 2]),
        rejected=packed([6, 2]),
        chosen_log_prob=math.nan,
        rejected_log_prob=math.nan,
    )
    pairs = [elsewhere, elsewhere.model_copy(update={"sampled": sampled})]
    rendered, row = token_rows(tokenizer, pairs, 100, Counter())
    assert row["prompt_ids"].tolist() == rendered["prompt_ids"].tolist()
    assert row["chosen_ids"].tolist() == [5, 2]


def test_an_answer_that_the_template_changes_is_counted() -> None:
    tokenizer, dropped = make_tokenizer(), Counter()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.content", "m.content.split('</think>')[-1]"
    )
    pairs = [pair("a", "hi", "<think>so</think>yes", "no"), pair("b", "hi", "yes", "no")]
    (row,) = token_rows(tokenizer, pairs, 100, dropped)
    assert row["id"] == "b" and dropped == {"not_rendered": 1}


def many(count: int) -> Iterator[PreferencePair]:
    """Pairs of about 600 tokens, one by one; the answers of every second one are longer."""
    for number in range(count):
        times = 40 + 10 * (number % 2)
        yield pair(f"p{number}", f"question {number:04}", f"yes {number:04} " * times, "no " * 80)


def test_the_file_says_what_the_rows_are(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    dropped: Counter[str] = Counter()
    written = write_token_rows(tmp_path / "rows.parquet", tokenizer, many(700), 450, dropped)
    assert dropped == {"too_long": 350} and len(written) == 350
    table = pyarrow.parquet.read_table(written.path)
    assert table.schema.field("prompt_ids").type == pyarrow.list_(pyarrow.int32())
    assert table["id"].to_pylist()[:10] == [f"p{number}" for number in range(0, 20, 2)], "in order"
    rows = table.to_pylist()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert list(written.lengths) == [sum(len(row[name]) for name in names) for row in rows]
    assert written.largest == max(max(row[name]) for row in rows for name in names)
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "no " * 80 + "<|im_end|>"


def test_nothing_that_fits_is_no_rows(tmp_path: Path) -> None:
    written = write_token_rows(tmp_path / "rows.parquet", make_tokenizer(), many(3), 50, Counter())
    assert not written and written.largest == -1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dpo_dist.data.rows.ROW_GROUP", 100)
    monkeypatch.setattr("dpo_dist.phases.token_rows.BATCH", 50)
    tokenizer = make_tokenizer()

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            write_token_rows(tmp_path / "rows.parquet", tokenizer, many(count), 2_000, Counter())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what is imported and cached at the first time
    tokens_more = 900 * 600
    assert peak(1_500) - peak(600) < tokens_more, "less than a byte for each token more"
