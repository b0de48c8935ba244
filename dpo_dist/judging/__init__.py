"""Who prefers which answer: judges, and the panel that asks them in both orders."""
