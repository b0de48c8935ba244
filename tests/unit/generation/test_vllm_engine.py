"""vLLM's answers as ours; vLLM itself is not needed for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_dist.errors import EngineFailed, ModelError
from dpo_dist.generation.engine import lora_rank
from dpo_dist.generation.vllm_engine import _completion


def finished(reason: str) -> SimpleNamespace:
    answer = SimpleNamespace(
        text="Red.", token_ids=[5, 6], finish_reason=reason, cumulative_logprob=-1.5
    )
    return SimpleNamespace(request_id="r", outputs=[answer])


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_ended_is_a_completion(reason: str) -> None:
    completion = _completion(finished(reason))
    assert (completion.id, completion.text, completion.token_ids) == ("r", "Red.", (5, 6))
    assert (completion.finish_reason, completion.log_prob) == (reason, -1.5)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_any_other_end_is_no_answer(reason: str) -> None:
    with pytest.raises(EngineFailed, match=f"the answer to r with `{reason}`"):
        _completion(finished(reason))


def test_adapters_are_served_at_the_next_rank_that_vllm_has(tmp_path: Path) -> None:
    adapters = []
    for r in (4, 48, 600):
        adapters.append(tmp_path / str(r))
        adapters[-1].mkdir()
        (adapters[-1] / "adapter_config.json").write_text(json.dumps({"r": r}))
    assert lora_rank(adapters[:2]) == 64
    with pytest.raises(
        ModelError, match=rf"{adapters[2]}: the adapter has rank 600, .* at most 512"
    ):
        lora_rank(adapters)
