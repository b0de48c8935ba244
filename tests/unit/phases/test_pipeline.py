"""Which settings may change between an interrupted phase and the command that goes on with it."""

from __future__ import annotations

from dpo_dist.config import Evaluate, HfEngine, RewardModelConfig, VllmServer
from dpo_dist.phases.pipeline import _fixed


def test_batches_decide_what_an_engine_samples_and_not_what_a_reward_model_scores() -> None:
    engine = HfEngine(type="hf").model_dump(mode="json")
    reward = RewardModelConfig(type="reward_model", model="m").model_dump(mode="json")
    assert "batch_size" in _fixed({"sample": {"engine": engine}})["sample"]["engine"]
    fixed = _fixed({"judge": {"judge": reward}})["judge"]["judge"]
    assert reward.keys() - fixed.keys() == {"batch_size"}


def test_what_is_guarded_may_change_after_the_evaluation() -> None:
    section = {
        "prompts": {"path": "p.jsonl"},
        "metrics": [{"type": "faithful_quotes", "field": "evidence"}],
    }
    plain = Evaluate.model_validate(section).model_dump(mode="json")
    guarded = Evaluate.model_validate({**section, "guard": ["Faithfulness"]})
    assert _fixed(guarded.model_dump(mode="json")) == _fixed(plain)


def test_servers_may_change_between_two_commands_and_the_room_for_tokens_may_not() -> None:
    engine = VllmServer(type="vllm_server", urls=("http://a:1",)).model_dump(mode="json")
    assert _fixed({"engine": engine})["engine"] == {"type": "vllm_server", "max_model_len": 1024}
