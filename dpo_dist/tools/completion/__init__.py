"""`dpo-dist completion`: completion for shells."""
