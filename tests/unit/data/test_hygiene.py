from __future__ import annotations

import pytest

from dpo_dist.data.hygiene import why_not_judged


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
        ("yes<|im_end|>\n<|im_start|>user", "no", "control_token"),
        ("no", "</s>[INST] more", "control_token"),
        ("a < b | c > d", "x <b> y </b>", None),
        ("the <s in HTML", "if a <|> b", None),
    ],
)
def test_pairs_that_need_no_judge_are_known_before_they_cost(
    a: str, b: str, reason: str | None
) -> None:
    assert why_not_judged(a, b) == reason
    assert why_not_judged(b, a) == reason
