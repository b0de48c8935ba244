"""Judges, and the panel that asks a judge about every comparison in both orders."""
