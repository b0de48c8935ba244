"""`dpo-dist sweep`: one training and evaluation for every combination of settings."""
