"""The trial of the chat template on the prompts of all phases."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from dpo_dist.data.prompts import iterate_prompts
from dpo_dist.data.templates import TRIED, try_prompts
from dpo_dist.runs.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def try_prompts_of(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render the first prompts of the sampling, for every slot, and of the evaluation. Raises
    `DataError`."""
    sample, evaluate = run.config.sample, run.config.evaluate
    if sample is not None and run.config.preferences.source == "judged":
        first = islice(iterate_prompts(sample.prompts), TRIED)
        try_prompts(tokenizer, sample.prompts, first, sample.slots)
    if evaluate is not None:
        try_prompts(tokenizer, evaluate.prompts, islice(iterate_prompts(evaluate.prompts), TRIED))
