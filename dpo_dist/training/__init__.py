"""SFT and DPO under `accelerate launch`.

What knows TRL: `trainer.py` builds its trainers, `preference_trainer.py` works at the seams of its
`DPOTrainer`; `layout`, `logprobs` and `divergence` use its kernels and its forms.
"""
