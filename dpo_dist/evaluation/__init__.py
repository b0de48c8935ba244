"""Comparing the arms: statistics, and the table that they fill."""
