"""The environment's variables that hold keys, as those name them who hand the keys out. A run file
may name others: `Config.key_variables` are those that it uses."""

from __future__ import annotations

ANTHROPIC = "ANTHROPIC_API_KEY"
OPENAI = "OPENAI_API_KEY"
HUB = "HF_TOKEN"
WANDB = "WANDB_API_KEY"

USUAL = (ANTHROPIC, OPENAI, HUB, WANDB)
