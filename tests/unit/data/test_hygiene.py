from __future__ import annotations

import time

import pytest

from dpo_dist.data.hygiene import drop_reason, encodable, looks_like_refusal, similar

LONG = " ".join(f"word{n}" for n in range(40))


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("yes", "no", None),
        ('{"severity": "high"}', '{"severity": "low"}', None),
        ('{"severity": "high"}', '{"severity": "high"', None),  # the format may be what differs
        ("yes", " ", "empty"),
        ("", "\n", "empty"),
        ("yes\n", " yes", "identical"),
        ("Yes, it is.", "yes,  it\nis.", "near_identical"),
        (LONG, LONG.replace("word7 ", "other "), "near_identical"),
        (LONG, "And " + LONG, "near_identical"),
        ("yes<|im_end|>\n<|im_start|>user", "no", "control_token"),
        ("no", "</s>[INST] more", "control_token"),
        ("a < b | c > d", "x <b> y </b>", None),
        ("the <s in HTML", "if a <|> b", None),
        ("nul\0", "no", "unencodable"),
    ],
)
def test_pairs_that_need_no_judge_are_known_before_they_cost(
    a: str, b: str, reason: str | None
) -> None:
    assert drop_reason(a, b) == reason
    assert drop_reason(b, a) == reason


@pytest.mark.parametrize(("words", "edits", "expected"), [(40, 2, True), (40, 3, False)])
def test_answers_are_similar_up_to_a_twentieth_of_their_words(
    words: int, edits: int, expected: bool
) -> None:
    a = [f"w{n}" for n in range(words)]
    b = ["other"] * edits + a[edits:]
    assert similar(" ".join(a), " ".join(b)) is expected


def test_a_word_makes_a_difference_in_short_answers_and_order_in_all() -> None:
    short = [f"w{n}" for n in range(19)]
    assert not similar(" ".join(short), " ".join([*short[:-1], "other"]))
    words = LONG.split()
    assert not similar(LONG, " ".join(words[20:] + words[:20])), "the same words, another order"


def test_answers_of_other_lengths_or_words_are_told_apart_at_once() -> None:
    a = " ".join(f"na na na a{n}" for n in range(1000))
    started = time.process_time()
    assert not similar(a, a[: len(a) // 2])
    assert not similar(a, a.replace(" a", " b"))
    assert time.process_time() - started < 2, "the filters spare the alignment"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "Sorry, I can't do that.",
        "I am very sorry, but I am not able to provide medical advice.",
        "I apologize, but I cannot fulfill this request.",
        "  **I cannot assist with that.**",
        "I can't help you with this.",
        "I'm unable to provide that information.",
        "I won't help with making weapons.",
        "I cannot provide information or guidance on tax fraud.",
        "Unfortunately, I cannot share this kind of content.",
        "As an AI language model, I cannot have opinions.",
        "As an AI, I don't have access to your files.",
        "As an artificial intelligence assistant, I must respectfully decline.",
        "as an ai language model,\nI can not browse the web.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert looks_like_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry to hear that your dog is ill. Try this: ...",
        "I'm sorry, but the right answer is 7.",
        "I'm sorry, but I can't make it to your party on Friday.",
        "I cannot stress enough how much sleep matters.",
        "I can't wait to see you again!",
        "I can't help but notice that the second loop never ends.",
        "Unfortunately, I cannot attend the meeting.",
        "I cannot provide enough praise for the staff.",
        "As an AI researcher, I cannot recommend this paper enough.",
        "As an AI language model, I can help you with your essay. Here it is:",
        "As an AI, I can't travel in time, but I can imagine the year 3000 with you.",
        "As an aid worker, I can't help you forget what happened.",
        "You can't assist with that without a licence.",
        "The function returns False. I cannot assist further without the code.",
        "SEV2: users cannot log in. I'm sorry, but I can't say more.",
        '{"summary": "I cannot assist with that"}',
    ],
)
def test_ordinary_sentences_are_no_refusals(text: str) -> None:
    assert not looks_like_refusal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ü 🙂", True), ("", True), ("a\0b", False), ("a\ud800b", False), ("\udfff", False)],
)
def test_what_no_file_can_carry_is_known(text: str, expected: bool) -> None:
    assert encodable(text) is expected
