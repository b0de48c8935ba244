"""`dpo-dist schema` and `dpo-dist config`: what a run file can hold, and what one holds."""
