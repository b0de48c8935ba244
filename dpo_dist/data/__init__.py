"""Reading prompts and preferences, and the one place where messages become tokens."""
