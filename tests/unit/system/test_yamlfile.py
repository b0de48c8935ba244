import pytest

from dpo_dist.system.yamlfile import YamlError, parse_with_lines, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("5e-6", 5e-6),
        ("-1.5E+3", -1500.0),
        ("5e", "5e"),
        ("'5e-6'", "5e-6"),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_every_key_and_item_has_its_line() -> None:
    _, lines = parse_with_lines("a:\n  b: 1\n  c:\n    - 2\n    - {d: 3}\n")
    assert lines == {
        **{("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5},
        ("a", "c", 1, "d"): 5,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "`a` stands twice, in line 1 and in line 3: remove one of them"),
        ("t:\n  k: 1\n\n  k: 2", "`t.k` stands twice, in line 2 and in line 4"),
        ("t:\n  - {x: 1}\n  - {y: 1, y: 1}", "`t.1.y` stands twice, in line 3 and in line 3"),
        ("t: {'k': 1, k: 2}", "`t.k` stands twice"),
        ("a: [1,", r"line 1, column \d+: "),
        ("a: 1\n b: 2", "line 2, column "),
        ("a: !!python/object:os.system 1", "line 1, column 4: could not determine a constructor"),
        ("a: 2026-13-01", "month must be in 1..12"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_what_is_not_valid_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        parse_yaml(text)
