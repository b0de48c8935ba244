"""Which settings may change between an interrupted phase and the command that goes on with it."""

from __future__ import annotations

from dpo_dist.config import HfEngine, RewardModelJudge
from dpo_dist.phases.pipeline import _fixed


def test_batches_decide_what_an_engine_samples_and_not_what_a_reward_model_scores() -> None:
    engine = HfEngine(type="hf").model_dump(mode="json")
    reward = RewardModelJudge(type="reward_model", model="m").model_dump(mode="json")
    assert "batch_size" in _fixed({"sample": {"engine": engine}})["sample"]["engine"]
    fixed = _fixed({"judge": {"judge": reward}})["judge"]["judge"]
    assert reward.keys() - fixed.keys() == {"batch_size"}
