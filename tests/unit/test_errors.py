"""The advice of errors."""

from __future__ import annotations

import shlex
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from dpo_dist.errors import MissingDependency
from tests.conftest import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def declared() -> list[str]:
    """The requirements as in the metadata of an installed package."""
    return [f"{text}; extra == '{extra}'" for extra, texts in EXTRAS.items() for text in texts]


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev"}))
def test_the_command_installs_what_the_extra_would(extra: str, monkeypatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=2", *declared()])
    _, _, command = str(MissingDependency("package", extra)).partition(" with: ")
    words = shlex.split(command)
    assert words[:2] == ["pip", "install"]
    assert [Requirement(word) for word in words[2:]] == [Requirement(w) for w in EXTRAS[extra]]


def test_several_extras_are_several_commands(monkeypatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["a>1; extra == 'x'", "b; extra == 'y'"])
    assert str(MissingDependency("a", "x", "y")).endswith("pip install 'a>1' or pip install b")


def test_without_metadata_the_package_itself_is_named(monkeypatch) -> None:
    def absent(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", absent)
    assert str(MissingDependency("wandb", "wandb")).endswith("with: pip install wandb")
