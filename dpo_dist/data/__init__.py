"""Reads prompts and preferences, and converts messages to tokens."""
