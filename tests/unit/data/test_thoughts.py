"""What of a sampled answer is its thought."""

from __future__ import annotations

import pytest

from dpo_dist.data.thoughts import spoken
from tests.tiny import make_tokenizer

GPT_OSS = "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>red"


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "thought"),
    [
        ("", "red", "red", ""),
        ("", "say <think>so</think> red", "say <think>so</think> red", ""),
        ("", "<think>\nso\n</think>\n\nred", "red", "so"),
        ("assistant\n<think>\n", "so\n</think>\n\nred", "red", "so"),
        ("assistant\n<think>\n", "so", "", "so"),
        ("assistant\n<think>\n\n</think>\n\n", "red", "red", ""),
        ("", "<think>\nso", "", "so"),
        ("<|start|>assistant", GPT_OSS, "red", "so"),
        ("<|start|>assistant", "<|channel|>final<|message|>red", "red", ""),
        ("<|start|>assistant", "<|channel|>analysis<|message|>so", "", "so"),
    ],
)
def test_only_a_thought_that_begins_the_answer_counts(
    prompt: str, answer: str, text: str, thought: str
) -> None:
    tokenizer = make_tokenizer()
    marks = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = [*tokenizer.encode(answer), tokenizer.eos_token_id]
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    found = spoken(tokenizer, tokenizer.encode(prompt), ids, plain)
    assert (found.text, found.thought) == (text, thought)
