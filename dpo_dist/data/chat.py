"""Converts messages to tokens; no other module does this."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dpo_dist.errors import ModelError
from dpo_dist.storage.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn: TypeAlias = dict[str, Any]
TEMPLATE_OPTIONS = ("tools", "chat_template_kwargs")  # fields of a turn that are no part of it


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; without a pad token, it pads with the end token. Raises
    `ModelError` if it has no chat template or end token."""
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
        # Masks and labels follow from lengths, never from the pad token.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, including the start of the assistant's turn."""
    (rendered,) = _rendered(tokenizer, [_turns(prompt)], add_generation_prompt=True)
    return rendered.ids


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str | Message
) -> list[int]:
    """The token ids of a conversation with its answer, rendered by the template as a whole."""
    (rendered,) = _rendered(tokenizer, [_turns(prompt, answer)])
    return rendered.ids


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str | Message
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) of one answer; see `answers_ids`."""
    ((start, (completion,)),) = answers_ids(tokenizer, [(prompt, [answer])])
    return start, completion


def answers_ids(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[Sequence[Message], Sequence[str | Message]]],
) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt ids, completion ids of each answer) of prompts with their answers.

    A completion ends with its end token; text that the template adds after it, such as a line
    break, is removed, since the model stops at the end token during inference. Raises `ModelError`
    if the template renders a prompt differently when an answer follows, since the prompt would then
    differ between sampling and training.
    """
    prompts = [_turns(prompt) for prompt, _ in examples]
    conversations = [_turns(prompt, answer) for prompt, answers in examples for answer in answers]
    starts = _rendered(tokenizer, prompts, add_generation_prompt=True)
    wholes = iter(_rendered(tokenizer, conversations))
    return [
        (start.ids, [_completion(tokenizer, start, w) for w in islice(wholes, len(answers))])
        for start, (_, answers) in zip(starts, examples, strict=True)
    ]


def _turns(prompt: Sequence[Message], answer: str | Message | None = None) -> list[Turn]:
    if isinstance(answer, str):
        answer = Message(role="assistant", content=answer)
    return [_turn(message) for message in (*prompt, *([answer] if answer is not None else []))]


def _turn(message: Message) -> Turn:
    """The turn as templates expect it: tool calls and options are objects."""
    turn: Turn = message.model_dump()
    objects = ("tool_calls", *TEMPLATE_OPTIONS)
    return turn | {key: json.loads(turn[key]) for key in objects if key in turn}


def _texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]], **options: object
) -> list[str]:
    """Render conversations, each with the template's options that its row has. Raises `ModelError`
    if the template leaves out a part."""
    if all(len(turn) == 2 for conversation in conversations for turn in conversation):
        rendered: list[str] = tokenizer.apply_chat_template(
            conversations, tokenize=False, **options
        )
        return rendered
    texts: list[str] = []
    for conversation in conversations:
        given = {k: turn[k] for turn in conversation for k in TEMPLATE_OPTIONS if k in turn}
        own = given.pop("chat_template_kwargs", {})
        turns = [{k: turn[k] for k in turn if k not in TEMPLATE_OPTIONS} for turn in conversation]
        text = tokenizer.apply_chat_template(turns, tokenize=False, **{**options, **own, **given})
        parts = {
            "tools": _names(given.get("tools", [])),
            "tool_calls": [n for turn in turns for n in _names(turn.get("tool_calls", []))],
            # Templates show the last thought only.
            "reasoning_content": [turns[-1].get("reasoning_content", "")],
        }
        for key, words in parts.items():
            if any(word.strip() not in text for word in words):
                raise ModelError(_LEFT_OUT.format(key))
        for key in own:
            if key not in str(tokenizer.chat_template):
                raise ModelError(_LEFT_OUT.format("chat_template_kwargs") + f" (`{key}`)")
        texts.append(text)
    return texts


_LEFT_OUT = (
    "the chat template leaves out the `{0}` of a row, so that it would not be trained on. Use a "
    "model whose template has it, or `ignore_columns: [{0}]`"
)


def _names(calls: list[Any]) -> list[str]:
    """The names of tools, or of the called ones."""
    return [str(call.get("function", call).get("name", "")) for call in calls]


@dataclass(frozen=True)
class _Rendered:
    """A conversation as rendered by the chat template."""

    text: str
    ids: list[int]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]], **options: object
) -> list[_Rendered]:
    texts = _texts(tokenizer, conversations, **options)
    ids = _ids(tokenizer, texts)
    return [_Rendered(text, tokens) for text, tokens in zip(texts, ids, strict=True)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The token ids of rendered texts, which already contain the special tokens."""
    tokenized = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = tokenized["input_ids"]
    return ids


def _completion(
    tokenizer: PreTrainedTokenizerBase, start: _Rendered, whole: _Rendered
) -> list[int]:
    if whole.ids[: len(start.ids)] == start.ids:
        completion = whole.ids[len(start.ids) :]
    elif whole.text.startswith(start.text):
        # A token spans the end of the prompt and the start of the answer, for example if the answer
        # starts with a line break. During inference, the prompt is tokenized without the answer.
        (completion,) = _ids(tokenizer, [whole.text.removeprefix(start.text)])
    else:
        raise ModelError(
            "the chat template renders a prompt differently when an answer follows it; DPO would "
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
    """(ids, attention mask) of a batch of prompts, each of shape (prompts, longest prompt). Padding
    is on the left, so that the last token of every row is the last token of its prompt."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask


def until_end(tokens: Sequence[int], ends: Collection[int]) -> tuple[tuple[int, ...], bool]:
    """(the answer up to and including its first end token, whether it was cut off). A batch
    continues to generate tokens until all its answers have ended."""
    for length, token in enumerate(tokens, start=1):
        if token in ends:
            return tuple(tokens[:length]), False
    return tuple(tokens), True


def check_adapter(adapter: Path, base: str) -> None:
    """Raise `ModelError` for a LoRA adapter of another base model."""
    path = adapter / "adapter_config.json"
    try:
        trained_on = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a readable adapter configuration ({error})") from None
    if _identity(trained_on) != _identity(base):
        raise ModelError(
            f"{adapter} is an adapter for {trained_on}, but model.base is {base}. An adapter only "
            "works with the weights that it was trained on."
        )


def _identity(model: str) -> str:
    """The last part of a Hub id or path, so that a moved model keeps its identity."""
    return Path(model).name if Path(model).exists() else str(model).split("/")[-1]
