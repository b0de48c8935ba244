"""`dpo-dist compare`: compares finished runs."""
