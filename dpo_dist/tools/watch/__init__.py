"""`dpo-dist watch`: the progress of a run from its files. Nothing is written."""
