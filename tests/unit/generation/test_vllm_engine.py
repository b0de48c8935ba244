"""vLLM's answers as ours; vLLM itself is not needed for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpo_dist.errors import EngineFailed, MissingDependency
from dpo_dist.generation.vllm_engine import _completion


def finished(reason: str) -> SimpleNamespace:
    answer = SimpleNamespace(text="Red.", token_ids=[5, 6], finish_reason=reason)
    return SimpleNamespace(request_id="r", outputs=[answer])


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_ended_is_a_completion(reason: str) -> None:
    completion = _completion(finished(reason))
    assert (completion.id, completion.text, completion.token_ids) == ("r", "Red.", (5, 6))
    assert completion.finish_reason == reason


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_any_other_end_is_no_answer(reason: str) -> None:
    with pytest.raises(EngineFailed, match=f"the answer to r with `{reason}`"):
        _completion(finished(reason))


def test_several_extras_are_several_commands() -> None:
    said = str(MissingDependency("vllm", "cpu", "cuda"))
    assert said.endswith("with: pip install 'dpo_dist[cpu]' or pip install 'dpo_dist[cuda]'")
