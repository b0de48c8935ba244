"""Which settings may change between an interrupted phase and the command that goes on with it."""

from __future__ import annotations

from dpo_dist.config import Config, Evaluate, HfEngine, JudgeSection, RewardModelConfig, VllmServer


def test_batches_decide_what_an_engine_samples_and_not_what_a_reward_model_scores() -> None:
    engine = HfEngine(type="hf")
    assert "batch_size" in engine.fixed()
    reward = RewardModelConfig(type="reward_model", model="m")
    fixed = JudgeSection(judge=reward).fixed()["judge"]
    assert reward.model_dump().keys() - fixed.keys() == {"batch_size"}


def test_what_is_guarded_may_change_after_the_evaluation() -> None:
    section = {
        "prompts": {"path": "p.jsonl"},
        "metrics": [{"type": "faithful_quotes", "field": "evidence"}],
    }
    plain = Evaluate.model_validate(section)
    guarded = Evaluate.model_validate({**section, "guard": ["Faithfulness"]})
    assert guarded.fixed() == plain.fixed()


def test_servers_may_change_between_two_commands_and_the_room_for_tokens_may_not() -> None:
    engine = VllmServer(type="vllm_server", urls=("http://a:1",))
    sample = {"prompts": {"path": "p.jsonl"}, "engine": engine}
    config = Config.model_validate(
        {"run": {"name": "test"}, "model": {"base": "m"}, "sample": sample}
    )
    fixed = config.fixed_sections(["sample", "judge"])
    assert fixed["sample"]["engine"] == {"type": "vllm_server", "max_model_len": 1024}
    assert fixed["judge"] is None
