"""dpo_dist: an SFT model and prompts in; a DPO-aligned model and an honest proof out."""

__version__ = "0.1.0"
