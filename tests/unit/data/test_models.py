"""Weights are read once for their digest, and again as soon as they may be others."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from dpo_dist.data import models
from dpo_dist.data.models import check_unquantized, weights_digest
from dpo_dist.errors import ModelError
from dpo_dist.storage.artifacts import directory_digest
from tests.console_text import without_times


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that are read; all sizes are kept, in a cache of the test's own."""
    names: list[str] = []
    read = hashlib.file_digest

    def counted(file, kind):
        names.append(Path(file.name).name)
        return read(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(models, "KEPT_BYTES", 0)
    monkeypatch.setattr(models, "SETTLED_NANOSECONDS", -1)
    monkeypatch.setattr(models, "_read", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for n in (1, 2):
        (folder / f"{n}.safetensors").write_bytes(bytes([n]) * 1000)
    (folder / "config.json").write_text("{}")
    return folder


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this one has in memory is forgotten."""
    monkeypatch.setattr(models, "_read", {})


def test_it_is_the_digest_of_the_files_and_read_once(model, reads, monkeypatch) -> None:
    expected = directory_digest(model, "*.safetensors")
    reads.clear()
    assert weights_digest(model) == expected
    assert reads == ["1.safetensors", "2.safetensors"]
    assert weights_digest(model) == expected
    another_process(monkeypatch)
    assert weights_digest(model) == expected
    assert len(reads) == 2, "the first process has left word"


def test_small_files_leave_nothing_behind(model, reads, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(models, "KEPT_BYTES", 1001)
    weights_digest(model)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("forget", [False, True])
def test_other_bytes_are_read_again_whatever_their_size_and_date(
    model, reads, monkeypatch, forget: bool
) -> None:
    before, path = weights_digest(model), model / "1.safetensors"
    date = path.stat()
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(date.st_atime_ns, date.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (1000, date.st_mtime_ns)
    if forget:
        another_process(monkeypatch)
    assert weights_digest(model) != before
    assert weights_digest(model) == directory_digest(model, "*.safetensors")


def test_a_file_that_was_put_in_its_place_is_another(model, reads, tmp_path: Path) -> None:
    before, path = weights_digest(model), model / "1.safetensors"
    other = tmp_path / "other"
    other.write_bytes(b"y" * 1000)
    date = path.stat()
    os.utime(other, ns=(date.st_atime_ns, date.st_mtime_ns))
    other.replace(path)
    assert weights_digest(model) != before


def test_what_has_just_changed_is_not_relied_on(model, reads, monkeypatch) -> None:
    """It may change again before the file system's clock ticks."""
    monkeypatch.setattr(models, "SETTLED_NANOSECONDS", 2 * 10**9)
    weights_digest(model)
    weights_digest(model)
    assert len(reads) == 4
    later = time.time_ns() + 3 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    weights_digest(model)
    weights_digest(model)
    assert len(reads) == 6


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"path": 1, "stamp": 2}'])
def test_a_damaged_note_is_none(model, reads, monkeypatch, tmp_path: Path, damage: str) -> None:
    expected = weights_digest(model)
    for note in (tmp_path / "cache").rglob("*.json"):
        note.write_text(damage)
    another_process(monkeypatch)
    assert weights_digest(model) == expected and len(reads) == 4


def test_a_long_reading_is_announced_once(model, reads, monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "ANNOUNCED_BYTES", 2000)
    weights_digest(model)
    weights_digest(model)
    said = without_times(capsys.readouterr().err)
    assert said == f"{model}: reading 0 GB of weights for their digest"


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_quantized_checkpoint_is_refused_with_what_to_do(tmp_path: Path, method: str) -> None:
    check_unquantized("owner/not-here")
    for quantization in (None, {"quant_method": method}):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
        if quantization is None:
            check_unquantized(str(tmp_path))
            continue
        with pytest.raises(ModelError, match=rf"quantized \({method}\).*quantization: nf4"):
            check_unquantized(str(tmp_path))
