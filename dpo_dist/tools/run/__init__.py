"""`dpo-dist run` and the commands of the phases."""
