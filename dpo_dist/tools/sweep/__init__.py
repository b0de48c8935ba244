"""`dpo-dist sweep`: a training and an evaluation for every combination of settings."""
