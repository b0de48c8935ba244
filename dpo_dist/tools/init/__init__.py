"""`dpo-dist init`: a new run file with its data."""
