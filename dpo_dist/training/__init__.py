"""SFT and DPO under `accelerate launch`; `trainer.py` is the one file that knows TRL."""
