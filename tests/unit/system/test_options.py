"""Options of a command line that are declared at a dataclass's fields."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from dpo_dist.system.options import Option, add_options, flags, from_options


def _megabytes(text: str) -> int:
    number, unit = text[:-2], text[-2:]
    if unit != "MB":
        raise argparse.ArgumentTypeError(f"{text}: not in MB")
    return int(number)


@dataclass(frozen=True)
class Machine:
    """A field of every kind."""

    name: Annotated[str, Option("what it is called", "NAME")]
    cores: Annotated[int, Option("its cores", "N")]
    share: Annotated[float, Option("share of it in %", "SHARE")] = 0.5
    folder: Annotated[Path, Option("where it works", "DIR")] = Path("/work")
    mode: Annotated[Literal["fast", "safe"], Option("how it works, 100 % of the time")] = "safe"
    limit: Annotated[int | None, Option("limit (default: as many as there are)", "N")] = None
    note: Annotated[str, Option("a word about it", "WORD")] = ""
    labels: Annotated[tuple[str, ...], Option("a label", "WORD", "label")] = ()
    ports: Annotated[tuple[int, ...], Option("a port", "PORT", "port")] = ()
    spare: Annotated[bool, Option("keep it, 100 % idle")] = False
    memory: Annotated[int, Option("its memory", "SIZE", parse=_megabytes)] = 100
    rack: Annotated[str, "no option"] = "r1"
    seen: int = 0

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise ValueError(f"--cores {self.cores}: at least 1")


NEEDED = ("--name", "a", "--cores", "4")


def parser(kind: type = Machine, *only: str, **settings: object) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="prog")
    add_options(found, kind, only or None, **settings)  # type: ignore[arg-type]
    return found


def read(*words: str) -> Machine:
    return from_options(Machine, parser().parse_args(words))


def refused(capsys: pytest.CaptureFixture[str], found: argparse.ArgumentParser, *words: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        found.parse_args(words)
    return capsys.readouterr().err


def test_what_is_not_given_has_the_default_of_its_field() -> None:
    assert read(*NEEDED) == Machine("a", 4)


def test_every_kind_of_field_is_read() -> None:
    options = (
        *("--share", "0.25", "--folder", "there", "--mode", "fast", "--limit", "3"),
        *("--note", "x y", "--label", "one", "--label", "two", "--port", "80", "--port", "443"),
        *("--spare", "--memory", "512MB"),
    )
    assert read(*NEEDED, *options) == Machine(
        name="a",
        cores=4,
        share=0.25,
        folder=Path("there"),
        mode="fast",
        limit=3,
        note="x y",
        labels=("one", "two"),
        ports=(80, 443),
        spare=True,
        memory=512,
    )


def test_a_repeatable_option_begins_empty_every_time() -> None:
    found = parser()
    for words, labels in ((("--label", "one"), ("one",)), ((), ())):
        assert from_options(Machine, found.parse_args([*NEEDED, *words])).labels == labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cores", "4"), "the following arguments are required: --name"),
        ((*NEEDED, "--cores", "many"), "argument --cores: invalid int value: 'many'"),
        ((*NEEDED, "--share", "half"), "argument --share: invalid float value: 'half'"),
        ((*NEEDED, "--limit", ""), "argument --limit: invalid int value: ''"),
        ((*NEEDED, "--port", "http"), "argument --port: invalid int value: 'http'"),
        ((*NEEDED, "--mode", "slow"), "argument --mode: invalid choice: 'slow'"),
        ((*NEEDED, "--memory", "512"), "argument --memory: 512: not in MB"),
        ((*NEEDED, "--spare", "yes"), "unrecognized arguments: yes"),
        ((*NEEDED, "--rack", "r2"), "unrecognized arguments: --rack"),
        ((*NEEDED, "--seen", "1"), "unrecognized arguments: --seen"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_option(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, parser(), *words)


def test_what_the_constructor_refuses_is_raised() -> None:
    with pytest.raises(ValueError, match="--cores 0: at least 1"):
        read("--name", "a", "--cores", "0")


@dataclass(frozen=True)
class Choice:
    """A choice without a default."""

    way: Annotated[Literal["up", "down"], Option("where to")]


def test_a_choice_without_a_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: --way" in refused(capsys, parser(Choice))
    assert from_options(Choice, parser(Choice).parse_args(["--way", "up"])) == Choice("up")


def test_optional_lets_required_options_be_left_out() -> None:
    options = parser(optional=True).parse_args([])
    assert (options.name, options.cores, options.share, options.labels) == (None, None, 0.5, [])
    assert parser(Choice, optional=True).parse_args([]).way is None


def test_only_the_named_fields_are_added_and_the_others_keep_their_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = parser(Machine, "share", "labels")
    assert "--folder" in refused(capsys, found, "--folder", "there")
    options = found.parse_args(["--share", "1", "--label", "one"])
    made = from_options(Machine, options, name="b", cores=2)
    assert made == Machine("b", 2, share=1.0, labels=("one",))


def test_a_value_that_is_given_replaces_the_option_s() -> None:
    options = parser().parse_args([*NEEDED, "--note", "typed"])
    assert from_options(Machine, options, note="given", seen=7) == Machine(
        "a", 4, note="given", seen=7
    )


def test_a_parser_may_replace_a_default() -> None:
    found = parser(share=0.75, name="b")
    options = found.parse_args(["--cores", "1"])
    assert from_options(Machine, options) == Machine("b", 1, share=0.75)
    assert "(default: 0.75)" in found.format_help() and "(default: b)" in found.format_help()


def test_the_help_has_placeholders_and_defaults() -> None:
    text = " ".join(parser().format_help().split())
    for part in (
        "--name NAME what it is called --cores",
        "--share SHARE share of it in % (default: 0.5)",
        "--folder DIR where it works (default: /work)",
        "--mode {fast,safe} how it works, 100 % of the time",
        "--limit N limit (default: as many as there are) --note",
        "--note WORD a word about it --label",
        "--label WORD a label (repeatable)",
        "--port PORT a port (repeatable)",
        "--spare keep it, 100 % idle",
        "--memory SIZE its memory (default: 100)",
    ):
        assert part in text
    assert "usage: prog [-h] --name NAME --cores N [--share SHARE]" in text


def test_flags_are_told_by_field() -> None:
    assert flags(Machine) == {
        **{name: f"--{name}" for name in ("name", "cores", "share", "folder", "mode", "limit")},
        **{"note": "--note", "labels": "--label", "ports": "--port", "spare": "--spare"},
        "memory": "--memory",
    }


@dataclass(frozen=True)
class Hyphenated:
    main_port: Annotated[int, Option("a port", "PORT")] = 1


def test_a_flag_is_written_with_hyphens() -> None:
    assert flags(Hyphenated) == {"main_port": "--main-port"}
    options = parser(Hyphenated).parse_args(["--main-port", "2"])
    assert from_options(Hyphenated, options) == Hyphenated(2)
