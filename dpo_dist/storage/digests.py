"""Digests of large files, computed by several threads.

The digest of a file is a hash tree of two levels: the SHA-256 of the SHA-256 digests of its chunks
of `CHUNK_BYTES`. So a single large file keeps as many threads busy as many small ones. `hashlib`
releases Python's lock while it hashes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 64 * 2**20
BLOCK_BYTES = 2**18  # read at once; stays in the processor's cache
# More threads than this would wait for the disk.
MAX_THREADS = 16


def tree_digests(paths: Sequence[Path], threads: int | None = None) -> Generator[str]:
    """Yield the digest of each file, in order, in hexadecimal. `threads`: as many as this process
    has cores, at most `MAX_THREADS`. The consumer may stop early. Raises `OSError`."""
    threads = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
    # An empty file has one empty chunk.
    counts = [max(-(-path.stat().st_size // CHUNK_BYTES), 1) for path in paths]
    chunks = [(path, n) for path, count in zip(paths, counts, strict=True) for n in range(count)]
    with ThreadPoolExecutor(threads, "digests") as pool:
        digests = pool.map(_chunk_digest, chunks)
        try:
            for count in counts:
                yield hashlib.sha256(b"".join(itertools.islice(digests, count))).hexdigest()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunk_digest(chunk: tuple[Path, int]) -> bytes:
    path, number = chunk
    digest, block = hashlib.sha256(), memoryview(bytearray(min(BLOCK_BYTES, CHUNK_BYTES)))
    left = CHUNK_BYTES
    with path.open("rb", buffering=0) as file:
        file.seek(number * CHUNK_BYTES)
        while left and (read := file.readinto(block[:left])):
            digest.update(block[:read])
            left -= read
    return digest.digest()
