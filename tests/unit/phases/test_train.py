"""What the train phase keeps, drops and refuses before the first step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dpo_dist.artifacts import phase_directory
from dpo_dist.config import Config
from dpo_dist.errors import DataError, ModelError
from dpo_dist.phases import train
from dpo_dist.phases.train import _check_vocabulary, _tokenize
from dpo_dist.planning.memory import ModelShape
from dpo_dist.records import Message, PreferencePair, Prompt
from tests.tiny import make_tokenizer

SHAPE = ModelShape(
    layers=2, hidden=32, heads=4, key_heads=2, head_dim=8, ffn=64, vocabulary=259, tied=True
)


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
    (row,) = _tokenize(make_tokenizer(), pairs, 100, dropped)
    assert dropped == {"too_long": 1, "prompt_too_long": 1, "identical": 1}
    assert row["id"] == "kept"
    lengths = [len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")]
    assert row["tokens"] == sum(lengths) and min(lengths) > 0
    assert len(row["row"]) == 64


def test_a_row_is_the_same_row_in_another_run() -> None:
    keys = {
        _tokenize(make_tokenizer(), [pair(name, "hi", "yes", "no")], 100, Counter())[0]["row"]
        for name in ("a", "b")
    }
    assert len(keys) == 1, "the reference's log-probs are found again under another id"


def test_a_tokenizer_of_another_model_is_refused() -> None:
    rows = _tokenize(make_tokenizer(), [pair("p", "hi", "yes", "no")], 100, Counter())
    _check_vocabulary("m", SHAPE, rows)
    rows[0]["rejected_ids"][-1] = 259
    with pytest.raises(ModelError, match="token 259, but the model has only 259 embeddings"):
        _check_vocabulary("m", SHAPE, rows)


@pytest.mark.parametrize(("source", "expected"), [("path", ["h"]), ("judged", [])])
def test_pairs_from_elsewhere_are_held_against_the_evaluation(
    tmp_path: Path, write_jsonl, monkeypatch: pytest.MonkeyPatch, source: str, expected: list[str]
) -> None:
    seen: list[str] = []

    def load(config: object, folder: Path, seed: int, held_out: list[Prompt], **_: bool) -> None:
        seen.extend(prompt.id for prompt in held_out)
        raise DataError("read enough")

    monkeypatch.setattr(train, "load_preferences", load)
    task = {"type": "metric", "metrics": [{"type": "label_match", "field": "f"}]}
    prompts = {"path": write_jsonl(tmp_path / "eval.jsonl", [{"id": "h", "prompt": "q"}])}
    config = Config.model_validate(
        {
            "run": {"name": "test", "output_dir": tmp_path},
            "model": {"base": "org/model"},
            "sample": {"prompts": prompts, "engine": {"type": "hf"}},
            "judge": {"judge": task},
            "preferences": {"source": source} | ({"path": "p.jsonl"} if source == "path" else {}),
            "train": {},
            "evaluate": {"prompts": prompts, "metrics": task["metrics"]},
        }
    )
    with phase_directory(tmp_path / "out", {}) as out, pytest.raises(DataError, match="enough"):
        train.run(config, out)
    assert seen == expected
