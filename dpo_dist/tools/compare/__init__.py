"""`dpo-dist compare`: finished runs side by side."""
