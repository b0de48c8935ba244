"""docs/reference.md: every key of the run file, with its description, as the code has it now."""

from __future__ import annotations

from docs.reference import TARGET, reference


def test_the_reference_is_current_and_every_key_has_a_description() -> None:
    """A key without a description makes `reference` fail."""
    assert TARGET.read_text(encoding="utf-8") == reference(), "run `make reference`"
