"""Arms with examples, other adapters and other models, from the run file to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.config.runfile import load_config
from dpo_dist.data.chat import load_tokenizer, prompt_ids
from dpo_dist.generation import hf_engine
from dpo_dist.runs.arms import arms_of
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import read_records
from dpo_dist.storage.manifest import read_fingerprint
from dpo_dist.storage.records import Generation, Prompt, Verdict
from tests.tiny import make_model

EXAMPLES = [{"prompt": "1 + 1", "completion": "2"}, {"prompt": "2 + 2", "completion": "4"}]
ARMS = [
    "base",
    {"name": "two-shot", "model": "base", "few_shot": EXAMPLES},
    {"name": "rival", "system": "Be brief."},
]
JUDGE = "def prefer(prompt, first, second):\n    return 'first' if first > second else 'second'\n"


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, write_run, write_jsonl, write_module) -> Path:
    rival = make_model(tmp_path / "rival", seed=5)
    write_jsonl(tmp_path / "held_out.jsonl", [{"prompt": f"{n} + {n}"} for n in range(5, 9)])
    return write_run(
        model={"base": str(tiny_model), "dtype": "float32"},
        preferences={"source": "path", "path": "held_out.jsonl"},
        evaluate={
            "prompts": {"path": "held_out.jsonl"},
            "engine": {"type": "hf", "max_model_len": 256},
            "arms": [*ARMS[:2], {**ARMS[2], "model": str(rival)}],
            "max_new_tokens": 12,
            "metrics": [{"type": "length"}],
            "judge": {"type": "function", "path": f"{write_module(JUDGE)}:prefer"},
        },
    )


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The models of the engines that were started."""
    models: list[str] = []
    begin = hf_engine.HfInProcess.__init__

    def note(self, config, model, *args) -> None:
        models.append(Path(model).name)
        begin(self, config, model, *args)

    monkeypatch.setattr(hf_engine.HfInProcess, "__init__", note)
    return models


def test_arms_are_compared_by_name(
    run_file: Path, tmp_path: Path, tiny_model: Path, started: list[str]
) -> None:
    assert main(["evaluate", str(run_file)]) == 0
    assert started == [tiny_model.name, "rival"], "one engine per model"
    out = tmp_path / "runs" / "test" / "evaluate"
    answers = {(g.arm, g.prompt_id): g for g in read_records(out / "generations.jsonl", Generation)}
    prompts = list(read_records(out / "prompts.jsonl", Prompt))
    assert len(answers) == 3 * len(prompts)
    assert all(len(prompt.messages) == 1 for prompt in prompts), "a judge sees no examples"
    verdicts = list(read_records(out / "verdicts.jsonl", Verdict))
    assert {v.between for v in verdicts} == {
        ("two-shot", "base"),
        ("rival", "base"),
        ("rival", "two-shot"),
    }
    scores = json.loads((out / "scores.json").read_text())
    assert scores["arms"] == ["base", "two-shot", "rival"]
    assert {s["arm"] for s in scores["ranking"]["strengths"]} == set(scores["arms"])
    assert main(["report", str(run_file)]) == 0
    table = (out.with_name("report") / "table.txt").read_text()
    assert "Δ rival over Base" in table and "two-shot" in table
    assert "<h4>two-shot</h4>" in (out.with_name("report") / "report.html").read_text()


def test_an_arm_answers_what_it_is_shown(run_file: Path, tmp_path: Path, tiny_model: Path) -> None:
    """The same ids as by hand, and so the same greedy answer."""
    assert main(["evaluate", str(run_file)]) == 0
    out = tmp_path / "runs" / "test" / "evaluate"
    arms = arms_of(Run(load_config(run_file)))
    (prompt, *_) = read_records(out / "prompts.jsonl", Prompt)
    greedy = {
        g.arm: g.token_ids
        for g in read_records(out / "generations.jsonl", Generation)
        if g.prompt_id == prompt.id
    }
    assert len(set(greedy.values())) == 3
    for name, folder in (("two-shot", tiny_model), ("rival", tmp_path / "rival")):
        tokenizer = load_tokenizer(str(folder))
        ids = prompt_ids(tokenizer, arms[name].prompting.messages(prompt))
        assert greedy[name] == _continued(folder, ids, 12)


def _continued(folder: Path, ids: list[int], count: int) -> tuple[int, ...]:
    """The most probable token after another, by the model alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: list[int] = []
    while len(found) < count and model.config.eos_token_id not in found:
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *found]])).logits
        found.append(int(logits[0, -1].argmax()))
    return tuple(found)


def test_examples_and_system_prompt_are_in_the_fingerprint(
    run_file: Path, tmp_path: Path, capsys
) -> None:
    assert main(["evaluate", str(run_file)]) == 0
    out = tmp_path / "runs" / "test" / "evaluate"
    assert set(read_fingerprint(out).inputs["prompting"]) == {"two-shot", "rival"}
    run_file.write_text(run_file.read_text().replace("Be brief.", "Be long."))
    assert main(["evaluate", str(run_file)]) == 2
    assert "system" in capsys.readouterr().err


def test_a_held_out_prompt_cannot_be_an_example(run_file: Path, capsys) -> None:
    run_file.write_text(run_file.read_text().replace("prompt: 2 + 2", "prompt: 6 + 6"))
    assert main(["evaluate", str(run_file)]) == 2
    error = capsys.readouterr().err
    assert "is also an example of the arm two-shot: 'few_shot.1'" in error
