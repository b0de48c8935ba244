"""Sampled tokens on their way through every chat template that TRL ships: the trained row is the
sampled row, token for token, or the template is refused at the start."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import trl

from dpo_dist.config import DataSource
from dpo_dist.data.chat import answers_ids, completion_ids, end_token_ids, prompt_ids
from dpo_dist.data.preferences import packed
from dpo_dist.data.rendering import Unrendered
from dpo_dist.data.templates import try_prompts
from dpo_dist.data.thoughts import spoken
from dpo_dist.errors import DataError
from dpo_dist.phases.token_rows import token_rows
from dpo_dist.storage.records import Message, PreferencePair, Prompt, Sampled
from tests.tiny import make_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = re.compile(
    r"<[|\uff5c][^<>'\"{}\s]{1,40}[|\uff5c]>|<\w{2,20}_of_\w{2,20}>|</?s>|<[a-z]{3,8}\|>"
)
# What the models end a turn with: the tokenizer's end token, or one of generation_config.json.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<\uff5cend▁of▁sentence\uff5c>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "phi3": "<|end|>",
}
# Only the models that see images: a text is no turn for them.
NO_TEXT = {"idefics3", "llava_next", "smolvlm"}
NO_SYSTEM = {"gemma"}
# Their prompt opens a thought, which is not there if an answer without one follows.
OPENS_A_THOUGHT = {
    *("deepseek_r1_distill", "deepseekv3", "nemotron_3_nano", "nemotron_3_super"),
    *("nemotron_3_ultra", "nemotron_3_5_lightning"),
}
PLAIN = Prompt(id="p", messages=(Message(role="user", content="Name a colour."),))
SYSTEM = Prompt(id="s", messages=(Message(role="system", content="Be brief."), *PLAIN.messages))
SOURCE = DataSource(path=Path("prompts.jsonl"))


def named(template: str, names: set[str]) -> bool:
    return template.removesuffix("_training") in names


def tokenizer_of(template: str):
    """A byte-level tokenizer with the special tokens that the template names."""
    text = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = make_tokenizer()
    end = next((end for name, end in ENDS.items() if template.startswith(name)), "<|im_end|>")
    special = sorted({*SPECIAL.findall(text), end})
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.eos_token = end
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_trained_row_is_the_sampled_row(template: str) -> None:
    tokenizer = tokenizer_of(template)
    if named(template, NO_TEXT):
        with pytest.raises(DataError, match=r"prompts\.jsonl: prompt 1 \('p'\): the chat templat"):
            try_prompts(tokenizer, SOURCE, [PLAIN])
        return
    try_prompts(tokenizer, SOURCE, [PLAIN])
    prompt = prompt_ids(tokenizer, PLAIN.messages)
    # A thought, and bytes that are no whole character: neither survives a rendering.
    thoughts = [tokenizer.encode(text) for text in ("<think>\nso\n</think>\n\nred", "blue")]
    answers = [[*ids, 200, tokenizer.eos_token_id] for ids in thoughts]
    pair = PreferencePair(
        prompt_id="p",
        prompt=PLAIN.messages,
        chosen="red",
        rejected="blue",
        sampled=Sampled(
            prompt=packed(prompt),
            chosen=packed(answers[0]),
            rejected=packed(answers[1]),
            chosen_log_prob=-1.0,
            rejected_log_prob=-2.0,
        ),
    )
    (row,) = token_rows(tokenizer, [pair], 4_000, Counter())
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [row[name].tolist() for name in names] == [prompt, *answers]
    assert answers[0][-1] in end_token_ids(tokenizer)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_system_message_is_rendered_or_refused_with_a_remedy(template: str) -> None:
    tokenizer = tokenizer_of(template)
    if named(template, NO_SYSTEM):
        with pytest.raises(DataError, match="It works without the system message: move its text"):
            try_prompts(tokenizer, SOURCE, [PLAIN, SYSTEM])
    elif not named(template, NO_TEXT):
        try_prompts(tokenizer, SOURCE, [PLAIN, SYSTEM])
        assert "Be brief." in tokenizer.decode(prompt_ids(tokenizer, SYSTEM.messages))


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_from_elsewhere_is_rendered_whole_and_ends_once(template: str) -> None:
    tokenizer = tokenizer_of(template)
    if named(template, NO_TEXT | OPENS_A_THOUGHT):
        with pytest.raises(Unrendered):
            completion_ids(tokenizer, PLAIN.messages, "red")
        assert answers_ids(tokenizer, [(PLAIN.messages, ["red"])]) == [None]
        return
    start, completion = completion_ids(tokenizer, PLAIN.messages, "red")
    assert start == prompt_ids(tokenizer, PLAIN.messages)
    ends = end_token_ids(tokenizer)
    assert [token in ends for token in completion].index(True) == len(completion) - 1
    answer = spoken(tokenizer, start, completion, tokenizer.decode(completion[:-1], True))
    assert (answer.text, answer.thought) == ("red", "")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_thought_from_elsewhere_is_kept_once_or_refused(template: str) -> None:
    tokenizer = tokenizer_of(template)
    thinking = "<think>\nso\n</think>\n\nred"
    try:
        start, completion = completion_ids(tokenizer, PLAIN.messages, thinking)
    except Unrendered:
        return
    turn = tokenizer.decode(start).rpartition("colour.")[2] + tokenizer.decode(completion)
    assert turn.count("<think>") == turn.count("so\n") == turn.count("red") == 1
