"""Trains a DPO-aligned model from an SFT model and prompts, and measures what changed."""

__version__ = "0.1.0"
