"""What the train phase keeps, drops and refuses before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config import Config
from dpo_dist.errors import DataError, ModelError
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.phases import train
from dpo_dist.phases.train import TrainPhase, _check_vocabulary
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import phase_directory
from dpo_dist.storage.records import Prompt

SHAPE = ModelShape(
    layers=2, hidden=32, heads=4, key_heads=2, head_dim=8, ffn=64, vocabulary=259, tied=True
)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    _check_vocabulary("m", SHAPE, 258)
    with pytest.raises(ModelError, match="token id 259, but the model has only 259 embeddings"):
        _check_vocabulary("m", SHAPE, 259)


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
        TrainPhase().run(Run(config), out)
    assert seen == expected
