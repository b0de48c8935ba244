"""Engines that answer prompts: vLLM, and transformers for machines without it."""
