import json
from pathlib import Path

import pytest
from tokenizers import models

from dpo_dist.config import ChatTemplate
from dpo_dist.data.chat import (
    answers_ids,
    check_adapter,
    completion_ids,
    conversation_ids,
    end_token_ids,
    left_padded,
    load_tokenizer,
    prompt_ids,
    until_end,
)
from dpo_dist.errors import ConfigError, ModelError
from dpo_dist.storage.records import Message
from tests.tiny import make_tokenizer

PROMPT = (Message(role="user", content="hi 🙂 <|im_end|> שלום"),)


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    tokenizer = make_tokenizer()
    text = tokenizer.decode(prompt_ids(tokenizer, PROMPT[:1]))
    assert text.endswith("<|im_start|>assistant\n")
    assert prompt_ids(tokenizer, PROMPT)[0] == tokenizer.bos_token_id
    assert prompt_ids(tokenizer, PROMPT)[1] != tokenizer.bos_token_id, "one BOS, not two"


RICH = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if shout %}!{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{{ c.function.arguments.a }}>"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
CALLS = json.dumps([{"function": {"name": "add", "arguments": {"a": 7}}}])


def test_tools_options_and_thoughts_reach_the_template() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = RICH
    options = {"tools": TOOLS, "chat_template_kwargs": '{"shout": true}'}
    prompt = (Message(role="user", content="hi", **options),)
    answer = Message(role="assistant", content="", reasoning_content="hm", tool_calls=CALLS)
    plain = (Message(role="user", content="hi"),)
    (start, (completion,)), (other, _) = answers_ids(
        tokenizer, [(prompt, [answer]), (plain, ["yes"])]
    )
    text = tokenizer.decode(start)
    assert '"name": "add"' in text and "!" in text and text.endswith("[assistant]")
    assert tokenizer.decode(completion) == "hm<add7><|im_end|>"
    assert tokenizer.decode(other).endswith("[user]hi<|im_end|>[assistant]")


@pytest.mark.parametrize(
    ("turn", "part"),
    [
        (Message(role="user", content="hi", tools=TOOLS), "`tools`"),
        (Message(role="user", content="hi", chat_template_kwargs='{"x_y": 1}'), r"kwargs`.*x_y"),
        (Message(role="assistant", content="", tool_calls=CALLS), "`tool_calls`"),
        (Message(role="assistant", content="a", reasoning_content="hm"), "`reasoning_content`"),
    ],
)
def test_what_a_template_leaves_out_is_refused(turn: Message, part: str) -> None:
    with pytest.raises(ModelError, match=f"leaves out the .*{part}"):
        prompt_ids(make_tokenizer(), (turn,))


def test_a_completion_ends_with_its_end_token_and_nothing_behind() -> None:
    tokenizer = make_tokenizer()
    start, answer = completion_ids(tokenizer, PROMPT, "yes")
    assert start == prompt_ids(tokenizer, PROMPT)
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == "yes"


def test_prompts_and_answers_together_are_as_each_by_itself() -> None:
    tokenizer = make_tokenizer()
    other = (Message(role="system", content="be brief"), Message(role="user", content="and?"))
    together = answers_ids(tokenizer, [(PROMPT, ["yes", "no, never"]), (other, ["well"])])
    assert together == [
        (
            prompt_ids(tokenizer, prompt),
            [completion_ids(tokenizer, prompt, answer)[1] for answer in answers],
        )
        for prompt, answers in ((PROMPT, ["yes", "no, never"]), (other, ["well"]))
    ]


def test_an_answer_that_begins_in_the_prompt_s_last_token_leaves_the_prompt_as_it_is() -> None:
    tokenizer = make_tokenizer()
    vocabulary = {**tokenizer.get_vocab(), "ĊĊ": len(tokenizer)}  # two line breaks
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")])
    whole = conversation_ids(tokenizer, PROMPT, "\n\nyes")
    start, answer = completion_ids(tokenizer, PROMPT, "\n\nyes")
    assert vocabulary["ĊĊ"] in whole
    assert start == prompt_ids(tokenizer, PROMPT) != whole[: len(start)]
    assert tokenizer.decode(answer) == "\n\nyes<|im_end|>"


def test_a_template_that_changes_the_prompt_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ModelError, match="renders a prompt differently"):
        completion_ids(tokenizer, PROMPT, "yes")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("chat_template", "no chat template"), ("eos_token", "no end-of-sequence token")],
)
def test_an_unusable_tokenizer_is_refused(tmp_path: Path, attribute: str, message: str) -> None:
    tokenizer = make_tokenizer()
    setattr(tokenizer, attribute, None)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent: cannot load the tokenizer"):
        load_tokenizer(str(tmp_path / "absent"))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "org/Other-7B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    check_adapter(tmp_path, "org/Other-7B")
    check_adapter(tmp_path, "somewhere/else/Other-7B")
    with pytest.raises(ModelError, match=r"adapter for org/Other-7B, but model\.base is org/Mine"):
        check_adapter(tmp_path, "org/Mine-7B")


def test_a_batch_ends_where_its_prompts_end() -> None:
    ids, mask = left_padded([[5, 6], [7], [8, 9, 10]], pad=0)
    assert ids == [[0, 5, 6], [0, 0, 7], [8, 9, 10]]
    assert mask == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("tokens", "answer", "cut_off"),
    [
        ([4, 2, 0, 0], (4, 2), False),
        ([3, 2], (3,), False),
        ([4, 5], (4, 5), True),
        ([], (), True),
    ],
)
def test_an_answer_goes_up_to_its_first_end_token(
    tokens: list[int], answer: tuple[int, ...], cut_off: bool
) -> None:
    assert until_end(tokens, {2, 3}) == (answer, cut_off)


def test_the_run_file_s_template_and_variables_stay_with_the_saved_tokenizer(
    tmp_path: Path,
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    path = tmp_path / "own.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ 'think' if enable_thinking is not false }}:{% endif %}"
    )
    for variables, ending in (({}, "think:"), ({"enable_thinking": False}, "<|im_end|>:")):
        template = ChatTemplate(path=path, variables=variables)
        loaded = load_tokenizer(str(tmp_path / "base"), template)
        loaded.save_pretrained(tmp_path / "saved")
        for found in (loaded, load_tokenizer(str(tmp_path / "saved"))):
            assert found.decode(prompt_ids(found, PROMPT)).endswith(ending)
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*absent\.jinja cannot be read"):
        load_tokenizer(str(tmp_path / "base"), ChatTemplate(path=tmp_path / "absent.jinja"))


def test_an_answer_ends_where_generate_and_the_template_end_it(tmp_path: Path) -> None:
    """Gemma's end of turn is not the tokenizer's end token."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<eos>"]})
    tokenizer.eos_token = "<eos>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<turn>")
    turn, eos, other = (
        tokenizer.convert_tokens_to_ids(t) for t in ("<turn>", "<eos>", "<|im_end|>")
    )
    assert end_token_ids(tokenizer) == {eos, turn}
    _, answer = completion_ids(tokenizer, PROMPT, "yes")
    assert tokenizer.decode(answer) == "yes<turn>"
    tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [eos, turn, other]}))
    assert end_token_ids(load_tokenizer(str(tmp_path))) == {eos, turn, other}
    settings.write_text(json.dumps({"eos_token_id": other}))
    assert end_token_ids(load_tokenizer(str(tmp_path))) == {eos, other, turn}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("m.content.split('</think>')[-1]", "does not render the answer as it is"),
        ("'<think></think>' * (m.role == 'assistant') + m.content", "opens a thought before"),
        ("raise_exception('no such role')", "cannot render it: no such role"),
    ],
)
def test_an_answer_that_the_template_changes_is_refused(content: str, reason: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", content)
    with pytest.raises(ModelError, match=reason):
        completion_ids(tokenizer, PROMPT, "<think>so</think>yes")


def test_a_turn_without_an_end_is_refused_unless_the_next_one_opens_with_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_end|>{% else %}:{% endif %}"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    _, answer = completion_ids(tokenizer, PROMPT, "yes")
    assert tokenizer.decode(answer) == "yes<|im_end|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    with pytest.raises(ModelError, match="does not end the answer with an end token"):
        completion_ids(tokenizer, PROMPT, "yes")
