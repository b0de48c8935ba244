from pathlib import Path

from dpo_dist.training.reference import (
    ReferenceCache,
    ReferenceLogProbs,
    reference_key,
    row_key,
)

WEIGHTS = {"model": "a", "adapter": None}


def test_the_key_moves_with_the_weights_and_with_nothing_else_of_a_sweep() -> None:
    key = reference_key(WEIGHTS, "bfloat16", None)
    assert key == reference_key(dict(WEIGHTS), "bfloat16", None)
    others = {
        reference_key({**WEIGHTS, "adapter": "b"}, "bfloat16", None),
        reference_key({**WEIGHTS, "model": "b"}, "bfloat16", None),
        reference_key(WEIGHTS, "float32", None),
        reference_key(WEIGHTS, "bfloat16", 0.5),
    }
    assert len(others) == 4 and key not in others


def test_a_row_is_its_tokens_and_where_they_are_cut() -> None:
    assert row_key([1, 2], [3], [4]) == row_key((1, 2), (3,), (4,))
    assert row_key([1, 2], [3], [4]) != row_key([1], [2, 3], [4])
    assert row_key([1, 2], [3], [4]) != row_key([1, 2], [4], [3])


def test_values_come_back_to_the_last_bit_and_a_torn_line_is_forgotten(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path / "folder" / "key.jsonl")
    assert cache.read() == {}
    value = ReferenceLogProbs(row="r", chosen=-123.45678710937501, rejected=-1e-7)
    with cache.locked(), cache.journal() as journal:
        journal.append([value])
    path = tmp_path / "folder" / "key.jsonl"
    path.write_bytes(path.read_bytes() + b'{"row": "torn", "cho')
    cache.journal().close()
    assert cache.read() == {"r": value}
