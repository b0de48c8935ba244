import json
from pathlib import Path

import pytest

from dpo_dist.data.chat import check_adapter, completion_ids, load_tokenizer, prompt_ids
from dpo_dist.errors import ModelError
from dpo_dist.records import Message
from tests.tiny import make_tokenizer

PROMPT = (Message(role="user", content="hi 🙂 <|im_end|> שלום"),)


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    tokenizer = make_tokenizer()
    text = tokenizer.decode(prompt_ids(tokenizer, PROMPT[:1]))
    assert text.endswith("<|im_start|>assistant\n")
    assert prompt_ids(tokenizer, PROMPT)[0] == tokenizer.bos_token_id
    assert prompt_ids(tokenizer, PROMPT)[1] != tokenizer.bos_token_id, "one BOS, not two"


def test_a_completion_ends_with_its_end_token_and_nothing_behind() -> None:
    tokenizer = make_tokenizer()
    start, answer = completion_ids(tokenizer, PROMPT, "yes")
    assert start == prompt_ids(tokenizer, PROMPT)
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == "yes"


def test_a_template_that_changes_the_prompt_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ModelError, match="renders a prompt differently"):
        completion_ids(tokenizer, PROMPT, "yes")


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("chat_template", "no chat template"), ("pad_token", "no pad token")],
)
def test_an_unusable_tokenizer_is_refused(tmp_path: Path, attribute: str, message: str) -> None:
    tokenizer = make_tokenizer()
    setattr(tokenizer, attribute, None)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent: no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path / "absent"))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "org/Other-7B"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    check_adapter(tmp_path, "org/Other-7B")
    check_adapter(tmp_path, "somewhere/else/Other-7B")
    with pytest.raises(ModelError, match=r"adapter of org/Other-7B, but model\.base is org/Mine"):
        check_adapter(tmp_path, "org/Mine-7B")
