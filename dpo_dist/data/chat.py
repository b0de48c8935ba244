"""The only place where messages become tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.errors import ModelError
from dpo_dist.storage.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `ModelError` without a chat template, pad or end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: cannot load the tokenizer: {error}") from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"{model}: the tokenizer has no chat template. Use an instruction-tuned model, or put "
            "a chat_template.jinja next to the tokenizer."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{model}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{model}: the tokenizer has no pad token. Set `pad_token` in its "
            "tokenizer_config.json to an unused token (not to the end token, which would hide "
            "the end of every answer from the loss)."
        )
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant begins to speak."""
    ids = tokenizer.apply_chat_template(
        [message.model_dump() for message in prompt],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return [int(token) for token in ids]


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str
) -> list[int]:
    """Token ids of a conversation with its answer, as the template renders them as a whole."""
    turns = [message.model_dump() for message in prompt]
    turns.append({"role": "assistant", "content": answer})
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    return [int(token) for token in ids]


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) of a finished answer: `answers_ids` of a single one."""
    ((start, (completion,)),) = answers_ids(tokenizer, [(prompt, [answer])])
    return start, completion


def answers_ids(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Sequence[Message], Sequence[str]]],
) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt ids, the completion ids of each answer) of prompts with their finished answers.

    A completion ends with its end token. What the template writes behind that (a line break, say)
    is left out: at inference the model stops there. Raises `ModelError` for a template that
    renders a prompt differently once an answer follows, since training would then see another
    prompt than sampling did.
    """
    prompts = [[message.model_dump() for message in prompt] for prompt, _ in asked]
    conversations = [
        [*turns, {"role": "assistant", "content": answer}]
        for turns, (_, answers) in zip(prompts, asked, strict=True)
        for answer in answers
    ]
    starts = _rendered(tokenizer, prompts, add_generation_prompt=True)
    wholes = iter(_rendered(tokenizer, conversations))
    return [
        (start.ids, [_completion(tokenizer, start, w) for w in islice(wholes, len(answers))])
        for start, (_, answers) in zip(starts, asked, strict=True)
    ]


@dataclass(frozen=True)
class _Rendered:
    """What a chat template makes of a conversation."""

    text: str
    ids: list[int]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Any], **options: Any
) -> list[_Rendered]:
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, **options)
    return [_Rendered(*each) for each in zip(texts, _ids(tokenizer, texts), strict=True)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Of rendered texts: the template has written the special tokens."""
    tokenized = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = tokenized["input_ids"]
    return ids


def _completion(
    tokenizer: PreTrainedTokenizerBase, start: _Rendered, whole: _Rendered
) -> list[int]:
    if whole.ids[: len(start.ids)] == start.ids:
        completion = whole.ids[len(start.ids) :]
    elif whole.text.startswith(start.text):
        # A token reaches across the border: the answer begins with a line break, say. At inference
        # the prompt's tokens stand before the answer is written.
        (completion,) = _ids(tokenizer, [whole.text.removeprefix(start.text)])
    else:
        raise ModelError(
            "the chat template renders a prompt differently once an answer follows it; DPO would "
            "train on a different prompt than the one used for sampling"
        )
    ends = end_token_ids(tokenizer)
    for length in range(len(completion), 0, -1):
        if completion[length - 1] in ends:
            return completion[:length]
    return [*completion, int(tokenizer.eos_token_id)]


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end an assistant's turn."""
    return {int(tokenizer.eos_token_id)}


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, attention mask) of a batch of prompts, each (prompts, longest). Padding goes left, so
    that every row's last token is the end of its prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask


def until_end(tokens: Sequence[int], ends: Collection[int]) -> tuple[tuple[int, ...], bool]:
    """(an answer up to its first end token, that one included, whether it has been cut off): a
    batch generates on until all of its answers have ended."""
    for length, token in enumerate(tokens, start=1):
        if token in ends:
            return tuple(tokens[:length]), False
    return tuple(tokens), True


def check_adapter(adapter: Path, base: str) -> None:
    """Refuse a LoRA adapter that was trained on another base model."""
    path = adapter / "adapter_config.json"
    try:
        trained_on = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a readable adapter configuration ({error})") from None
    if _identity(trained_on) != _identity(base):
        raise ModelError(
            f"{adapter} is an adapter for {trained_on}, but model.base is {base}. An adapter only "
            "works with the weights it was trained on."
        )


def _identity(model: str) -> str:
    """A Hub id as it is; a path by its last part, so that a moved model stays the same."""
    return Path(model).name if Path(model).exists() else str(model).split("/")[-1]
