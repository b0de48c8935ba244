"""The digest of a file is that of its definition, whatever the chunks and threads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dpo_dist.storage import digests
from dpo_dist.storage.digests import tree_digests

CHUNK = 1000


def defined(content: bytes) -> str:
    chunks = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)] or [b""]
    return hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in chunks)).hexdigest()


@pytest.mark.parametrize("threads", [1, 7, None])
@pytest.mark.parametrize("block", [1, 64, 4096])
def test_digests_are_those_of_the_definition_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, block: int
) -> None:
    monkeypatch.setattr(digests, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(digests, "BLOCK_BYTES", block)
    contents = [bytes(n % 251 for n in range(size)) for size in (0, 1, 999, 1000, 1001, 5000, 7777)]
    paths = [tmp_path / str(n) for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert list(tree_digests(paths, threads)) == [defined(content) for content in contents]


def test_no_files_have_no_digests_and_a_consumer_may_stop(tmp_path: Path) -> None:
    assert list(tree_digests([])) == []
    path = tmp_path / "file"
    path.write_bytes(b"content")
    found = tree_digests([path, path])
    assert next(found) == next(tree_digests([path]))
    found.close()
    with pytest.raises(FileNotFoundError):
        list(tree_digests([path, tmp_path / "absent"]))
