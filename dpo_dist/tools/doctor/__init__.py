"""`dpo-dist doctor` and `dpo-dist preflight`: checks of machines before a run."""
