"""`dpo-dist plan`: estimates the memory, hours, cost and disk space of a run."""
