"""What a slot's seed fixes: an answer's noise, whatever is drawn beside it, before or after."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dpo_dist.cli import main
from dpo_dist.config import Sampling, VllmEngine
from dpo_dist.generation.build import build_engine
from dpo_dist.generation.engine import Completion, Engine, Request
from tests.conftest import SMOLLM2
from tests.contracts.test_engines import ids

HOT = Sampling(temperature=1.2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = VllmEngine(type="vllm", max_model_len=256, max_num_seqs=4, kv_cache_gib=1)
    built = build_engine(config, str(SMOLLM2), dtype="float32", seed=1, seeded=True)
    yield built
    built.close()


def requests(numbers: Sequence[int], seed: int) -> list[Request]:
    # Longer than a step's share of a prompt in pieces, where there were pieces.
    text = "Tell me about the number {n}, please. " + "Say it in your own words. " * 12
    return [
        Request(str(n), ids(SMOLLM2, text.format(n=n)), HOT, 24, seed=seed + n) for n in numbers
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"{SMOLLM2} is not there: make model")
def test_a_seeded_answer_is_the_same_in_any_company(engine: Engine) -> None:
    def ask(numbers: Sequence[int], seed: int) -> dict[str, Completion]:
        return {answer.id: answer for answer in engine.generate(requests(numbers, seed))}

    first = ask(range(9), 100)
    again = ask([7, 3, 8, 0], 100)  # as a resumed run, or a shard, draws them
    assert {name: first[name].token_ids for name in again} == {
        name: answer.token_ids for name, answer in again.items()
    }
    other = ask(range(9), 200)
    assert all(first[name].token_ids != other[name].token_ids for name in first)


@pytest.mark.parametrize(
    ("engine_type", "slots", "message"),
    [
        ("vllm", [{"temperature": 0.7, "seed": 1}, {"temperature": 1.2}], "set `seed` in every"),
        ("hf", [{"temperature": t, "seed": 1} for t in (0.7, 1.2)], "needs vLLM"),
    ],
)
def test_seeds_that_cannot_be_kept_are_refused(
    engine_type: str,
    slots: list[dict],
    message: str,
    tmp_path: Path,
    write_run,
    write_jsonl,
    capsys,
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "hi"}])
    run_file = write_run(
        model={"base": str(tmp_path)},
        sample={
            "prompts": {"path": "prompts.jsonl"},
            "engine": {"type": engine_type},
            "slots": slots,
        },
    )
    assert main(["sample", str(run_file)]) == 2
    assert message in capsys.readouterr().err
