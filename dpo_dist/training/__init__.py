"""SFT and DPO under `accelerate launch`.

These modules depend on TRL: `trainer.py` builds its trainers, `preference_trainer.py` overrides
parts of its `DPOTrainer`; `layout`, `logprobs` and `divergence` use its kernels and data formats.
"""

from __future__ import annotations

from typing import Any, TypeAlias

# Names for untyped objects of torch, transformers, peft and TRL.
CausalLM: TypeAlias = Any  # a transformers model, possibly wrapped by peft or accelerate
Trainer: TypeAlias = Any  # a TRL trainer
Batch: TypeAlias = dict[str, Any]  # tensors, row ids and a `PackPlan`
Metrics: TypeAlias = dict[str, float]  # what a trainer logs together
Context: TypeAlias = Any  # the `ctx` of a torch autograd function
