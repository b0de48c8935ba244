"""Converts messages to tokens; no other module does this."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_dist.config import ChatTemplate
from dpo_dist.data.rendering import Unrendered, render, turn_of
from dpo_dist.data.thoughts import openings
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.storage.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    model: str, template: ChatTemplate | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with the changes that `template` makes to its chat template;
    without a pad token, it pads with the end token. Raises `ModelError` if it has no chat template
    or end token, and `ConfigError` if the template's file cannot be read."""
    from transformers import AutoTokenizer

    template = template or ChatTemplate()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model}: cannot load the tokenizer: {error}") from None
    if template.path is not None:
        tokenizer.chat_template = _read_template(template.path)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{model}: the tokenizer has no chat template. Use an instruction-tuned model, or set "
            "`model.chat_template` to the path of a jinja file: the template of the model's "
            "instruction-tuned version, for example."
        )
    if template.variables:
        tokenizer.chat_template = _with_variables(tokenizer.chat_template, template.variables)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{model}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        # Masks and labels follow from lengths, never from the pad token.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template: {path} cannot be read ({error})") from None


def _with_variables(template: Any, variables: dict[str, Any]) -> Any:
    """The template (or templates by name) in which these variables have other defaults. So they
    hold wherever it renders, and stay with a model that is saved with it."""
    if isinstance(template, dict):
        return {name: _with_variables(text, variables) for name, text in template.items()}
    # Jinja reads Python's literals.
    defaults = (
        f"{{%- set {name} = {name} | default({value!r}) %}}" for name, value in variables.items()
    )
    return "".join(defaults) + str(template)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, including the start of the assistant's turn. Raises
    `Unrendered` if the template does not support it."""
    (ids,) = _ids(tokenizer, [prompt_text(tokenizer, prompt)])
    return ids


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> str:
    """A conversation as the template renders it, including the start of the assistant's turn."""
    return render(tokenizer, prompt, add_generation_prompt=True)


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str | Message
) -> list[int]:
    """The token ids of a conversation with its answer, rendered by the template as a whole."""
    (ids,) = _ids(tokenizer, [render(tokenizer, [*prompt, turn_of(answer)])])
    return ids


def completion_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str | Message
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) of one answer; see `answers_ids`. Raises `Unrendered`."""
    start, (completion,) = _texts(tokenizer, prompt, [answer], _end_texts(tokenizer))
    ids, whole = _ids(tokenizer, [start, start + completion])
    return ids, _completion(tokenizer, ids, whole, completion)


def answers_ids(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[Sequence[Message], Sequence[str | Message]]],
) -> list[tuple[list[int], list[list[int]]] | None]:
    """(prompt ids, completion ids of each answer) of prompts with their answers; None where the
    template cannot render one of the answers as it is.

    A completion is what the template renders after the prompt, up to the first end token behind the
    answer: the model stops there during inference, so what follows it, such as a line break or a
    second end token, is never sampled. It must begin where the prompt ends, hold the whole answer
    and have an end token, and it must not open a second thought.
    """
    ends = _end_texts(tokenizer)
    texts = [_texts_or_none(tokenizer, prompt, answers, ends) for prompt, answers in examples]
    rendered = [
        text
        for found in texts
        if found
        for text in (found[0], *(found[0] + completion for completion in found[1]))
    ]
    ids = iter(_ids(tokenizer, rendered))
    tokenized: list[tuple[list[int], list[list[int]]] | None] = []
    for found in texts:
        if found is None:
            tokenized.append(None)
            continue
        start, wholes = next(ids), islice(ids, len(found[1]))
        completions = [
            _completion(tokenizer, start, whole, text)
            for whole, text in zip(wholes, found[1], strict=True)
        ]
        tokenized.append((start, completions))
    return tokenized


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The token ids of rendered texts, which already contain the special tokens."""
    if not texts:
        return []
    tokenized = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = tokenized["input_ids"]
    return ids


def _texts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answers: Sequence[str | Message],
    ends: Collection[str],
) -> tuple[str, list[str]]:
    """(the rendered prompt, the completion of each answer). Raises `Unrendered`."""
    start = prompt_text(tokenizer, prompt)
    last = prompt[-1].content.strip()
    turn = start.rpartition(last)[2] if last else start  # what opens the assistant's turn
    completions = []
    for answer in map(turn_of, answers):
        whole = render(tokenizer, [*prompt, answer])
        if not whole.startswith(start):
            raise Unrendered(
                "the chat template renders a prompt differently when an answer follows it; DPO "
                "would train on a different prompt than the one used for sampling"
            )
        rendered = whole.removeprefix(start)
        if not any(end in rendered for end in ends):
            # Some templates (GLM) end a turn with the token that opens the next one.
            rendered += _opening_of_the_next(tokenizer, prompt, answer)
        completions.append(_up_to_the_end(rendered, turn, answer.content.strip(), ends))
    return start, completions


def _opening_of_the_next(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: Message
) -> str:
    following = Message(role="user", content="question")
    text = answer.content.strip()
    whole = render(tokenizer, [*prompt, answer, following])
    return whole.rpartition(text)[2] if text else ""


def _texts_or_none(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answers: Sequence[str | Message],
    ends: Collection[str],
) -> tuple[str, list[str]] | None:
    try:
        return _texts(tokenizer, prompt, answers, ends)
    except Unrendered:
        return None


def _up_to_the_end(rendered: str, turn: str, answer: str, ends: Collection[str]) -> str:
    before, found, after = rendered.partition(answer) if answer else ("", "", rendered)
    if not answer == found:
        raise Unrendered(
            "the chat template does not render the answer as it is (many drop an answer's thought)"
        )
    if openings(turn + before + found) > max(1, openings(answer)):
        raise Unrendered("the chat template opens a thought before an answer that has its own")
    places = [(after.find(end), end) for end in ends if end in after]
    if not places:
        raise Unrendered(
            f"the chat template does not end the answer with an end token ({' or '.join(ends)})"
        )
    place, end = min(places)
    return before + found + after[:place] + end


def _completion(
    tokenizer: PreTrainedTokenizerBase, start: list[int], whole: list[int], text: str
) -> list[int]:
    if whole[: len(start)] == start:
        return whole[len(start) :]
    # A token spans the end of the prompt and the start of the answer, for example if the answer
    # starts with a line break. During inference, the prompt is tokenized without the answer.
    (completion,) = _ids(tokenizer, [text])
    return completion


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an assistant's turn: those of the tokenizer and of the model's
    generation_config.json, as `generate` has them. If the template ends a turn with none of these,
    also the first special token that it renders after an answer."""
    ends = {int(tokenizer.eos_token_id), *_generation_ends(tokenizer.name_or_path)}
    answer = "answer"
    try:
        question = Message(role="user", content="question")
        whole = render(tokenizer, [question, turn_of(answer)])
    except Unrendered:
        return frozenset(ends)
    (after,) = _ids(tokenizer, [whole.rpartition(answer)[2]])
    if ends.isdisjoint(after):
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ends.update([token for token in after if token in special][:1])
    return frozenset(ends)


def _generation_ends(model: str) -> set[int]:
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(model).eos_token_id if model else None
    except (OSError, ValueError):  # the model has none
        return set()
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _end_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode([token])) for token in sorted(end_token_ids(tokenizer))]


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
