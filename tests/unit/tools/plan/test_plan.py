"""`dpo-dist plan` from the command line: figures, exit codes, messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.tools.plan import memory

UNREACHABLE = {"dataset": "owner/data", "split": "train"}


@pytest.fixture
def ultrafeedback(write_run, tmp_path: Path):
    """A run file of UltraFeedback's kind, with a model that is nowhere on the machine."""

    def write(method: str = "full", base: str = "meta-llama/Llama-3.1-8B", **train: object) -> str:
        (tmp_path / "rubric.md").write_text("Which is better?")
        judge = {"type": "claude", "model": "claude-opus-4-7", "rubric": "rubric.md"}
        return str(
            write_run(
                model={"base": base},
                preferences={"source": "ultrafeedback", "validation_limit": 2000},
                train={
                    "method": {"type": method},
                    "beta": 0.01,
                    "learning_rate": 5e-7,
                    "global_batch_size": 128,
                    "max_length": 2048,
                    **train,
                },
                evaluate={
                    "prompts": UNREACHABLE | {"limit": 500},
                    "engine": {"type": "vllm", "max_model_len": 4096},
                    "max_new_tokens": 512,
                    "metrics": [{"type": "length"}],
                    "judge": judge | {"transport": "batch"},
                },
            )
        )

    return write


def plan(tmp_path: Path, *arguments: str) -> dict:
    target = tmp_path / "plan.json"
    assert main(["plan", *arguments, "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_every_arm_is_answered_for_and_judged(ultrafeedback, tmp_path: Path) -> None:
    arms = "[base, {name: shots, model: base, few_shot: [{prompt: a, completion: b}]}, sft, dpo]"
    given = ("--set", f"evaluate.arms={arms}", "--gpus", "8xH100-80G")
    figures = plan(tmp_path, ultrafeedback("lora"), *given)
    times = {phase["phase"]: phase for phase in figures["phases"]}
    assert times["evaluate"]["tokens"] == 500 * 4 * 512
    (bill,) = figures["judges"]
    assert bill["requests"] == 500 * 6 * 2


def test_a_full_fine_tuning_of_8_b_on_two_nodes(ultrafeedback, tmp_path: Path, capsys) -> None:
    figures = plan(tmp_path, ultrafeedback(), "--gpus", "8xH100-80G", "--nodes", "2")
    assert figures["model"]["parameters"] == 8_030_261_248
    advice = figures["recommendation"]
    assert advice["accelerate_config"] == "zero2"
    assert advice["micro_batch_size"] * advice["accumulation"] * 16 == 128
    rows = {(row["method"], row["strategy"]): row for row in figures["memory"]}
    assert len(rows) == 10
    assert not rows["full", "ddp"]["fits"] and rows["lora", "zero2"]["fits"]
    assert rows["full", "zero2"]["parts"]["reference"] == 2 * 8_030_261_248  # to measure the KL
    times = {phase["phase"]: phase for phase in figures["phases"]}
    assert set(times) == {"train", "evaluate"}
    assert "477 steps" in times["train"]["note"]
    assert times["evaluate"]["tokens"] == 500 * 3 * 512
    (bill,) = figures["judges"]
    assert bill["requests"] == 500 * 3 * 2
    assert bill["usd"]["batch"] == pytest.approx(bill["usd"]["online"] / 2)
    assert figures["cluster"]["nodes"] == 2
    assert figures["disk"]["checkpoints while training"] == 3 * 16 * 8_030_261_248
    assert figures["problems"] == figures["unknown"] == []
    shown = capsys.readouterr().out
    assert "--set train.accelerate_config=zero2" in shown
    assert "GPU      79.6 GiB; NVIDIA H100" in shown
    assert "network  400 Gb/s per node" in shown
    known = {figure["source"] for figure in figures["figures"].values()}
    assert known == {"given", "stated", "assumed"}  # nothing was counted here, nothing measured
    assert not any(phase["measured"] for phase in figures["phases"])


def test_each_way_to_train_is_estimated_once(ultrafeedback, tmp_path, monkeypatch) -> None:
    asked = []
    ways = memory.ways_to_train
    monkeypatch.setattr(memory, "ways_to_train", lambda *a: asked.append(a[0].method) or ways(*a))
    plan(tmp_path, ultrafeedback("full"), "--gpus", "8xH100-80G")
    assert sorted(method.type for method in asked) == ["full", "lora"]


def test_lora_is_not_sharded_and_no_kl_means_no_second_model(ultrafeedback, tmp_path) -> None:
    lora = plan(tmp_path, ultrafeedback("lora"), "--gpus", "8xH100-80G")
    assert lora["recommendation"]["accelerate_config"] == "ddp"
    without = ultrafeedback(kl={"prompts": 0})
    full = plan(tmp_path, without, "--gpus", "8xH100-80G")
    assert all(row["parts"]["reference"] == 0 for row in full["memory"])


def test_too_few_gpus_end_with_2_and_say_how_many_are_enough(ultrafeedback, capsys) -> None:
    path = ultrafeedback(max_length=131072)
    assert main(["plan", path, "--gpus", "1xL4-24G"]) == 2
    out, err = capsys.readouterr()
    assert "Training memory" in out  # the table is there all the same
    assert "train does not fit on 1 x L4-24G" in err
    assert "most of it for activations" in err
    assert "sampling: the model weights" not in err


def test_a_model_that_no_engine_holds_is_a_problem(ultrafeedback, capsys) -> None:
    path = ultrafeedback("lora", base="Qwen/Qwen3-8B")
    gpu = ["--set", "evaluate.engine.gpu_memory_utilization=0.5"]
    assert main(["plan", path, "--gpus", "4xL4-24G", *gpu]) == 2
    assert "raise the engine's tensor_parallel_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the GPUs, e.g. --gpus 8xH100-80G; known: A100-40G"),
        (["--gpus", "8xH10"], "unknown GPU 'H10' (did you mean H100-80G?)"),
        (["--gpus", "6xH100-80G"], "cannot be shared evenly by 6 GPUs: set it to 126 or 132"),
        (["--gpus", "8xH100-80G", "--model-shape", "GPT-9"], "--model-shape GPT-9: unknown model"),
        (["--gpus", "8xH100-80G", "--calibrate", "nowhere"], "nowhere: no such file or directory"),
    ],
)
def test_bad_input_is_named(ultrafeedback, capsys, arguments, message: str) -> None:
    assert main(["plan", ultrafeedback(), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_asks_for_its_shape(ultrafeedback, tmp_path, capsys) -> None:
    path = ultrafeedback(base="owner/unheard-of")
    assert main(["plan", path, "--gpus", "8xH100-80G"]) == 2
    assert "name its shape with --model-shape" in capsys.readouterr().err
    figures = plan(tmp_path, path, "--gpus", "8xH100-80G", "--model-shape", "Mistral-7B")
    assert figures["model"]["parameters"] == 7_241_732_096


def test_an_unknown_price_is_printed_as_unknown(ultrafeedback, tmp_path, capsys) -> None:
    override = ["--set", "evaluate.judge.model=claude-of-tomorrow"]
    figures = plan(tmp_path, ultrafeedback(), "--gpus", "8xH100-80G", *override)
    assert figures["judges"][0]["usd"] == {"online": None, "batch": None}
    line = next(x for x in capsys.readouterr().out.splitlines() if "claude-of-tomorrow" in x)
    assert line.count("unknown") == 2 and "$" not in line


def test_unknown_data_comes_with_how_to_give_it(ultrafeedback, tmp_path, capsys) -> None:
    path = ultrafeedback()
    override = ["--set", "evaluate.prompts.limit=null"]
    figures = plan(tmp_path, path, "--gpus", "8xH100-80G", *override)
    assert figures["unknown"] == [
        "evaluate: the prompts are not on this machine; give their number: --eval-prompts N"
    ]
    assert figures["judges"] == []
    assert "Not included: evaluate" in capsys.readouterr().out
    given = plan(tmp_path, path, "--gpus", "8xH100-80G", *override, "--eval-prompts", "200")
    assert given["judges"][0]["requests"] == 200 * 3 * 2


def test_rounds_are_paid_for_as_often_as_they_are(write_run, write_jsonl, tmp_path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"question {n}"} for n in range(64)])
    write_jsonl(tmp_path / "e.jsonl", [{"prompt": f"held out {n}"} for n in range(8)])
    sections = {
        "model": {"base": "Qwen/Qwen3-8B"},
        "sample": {"prompts": {"path": "p.jsonl"}, "engine": {"type": "vllm"}},
        "judge": {"judge": {"type": "human", "sheet": "s.csv"}, "canaries": None},
        "train": {"global_batch_size": 8},
        "evaluate": {"prompts": {"path": "e.jsonl"}, "metrics": [{"type": "length"}]},
    }
    once = plan(tmp_path, str(write_run(**sections)), "--gpus", "8xH100-80G")
    thrice = plan(tmp_path, str(write_run(**sections, rounds=3)), "--gpus", "8xH100-80G")
    split = {"count": 3, "prompts": "split"}
    parts = plan(tmp_path, str(write_run(**sections, rounds=split)), "--gpus", "8xH100-80G")

    def tokens(figures: dict) -> list[float]:
        return [phase["tokens"] for phase in figures["phases"]]

    assert tokens(thrice) == pytest.approx([3 * n for n in tokens(once)])
    sample, train, evaluate = tokens(once)
    assert tokens(parts) == pytest.approx([sample, train, 3 * evaluate])
    assert once["judges"][0]["requests"] == 128
    assert thrice["judges"][0]["requests"] == 3 * 128
    assert parts["judges"][0]["requests"] == 128
