"""Reads a `.wandb` file, which wandb writes offline: protobufs in LevelDB's log format.

The layout is that of LevelDB (doc/log_format.md) with a header of 7 bytes. The log has blocks of
32 KiB; each fragment has a checksum (4 bytes), its length (2 bytes) and its kind (1: whole,
2: first, 3: middle, 4: last).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FRAGMENT = 32768, 7, 7
WHOLE, LAST = 1, 4


def read_records(path: Path) -> Iterator[Any]:
    """The `wandb_internal_pb2.Record`s of a file."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = HEADER, b""
    while place < len(content):
        room = BLOCK - place % BLOCK
        if room < FRAGMENT:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + FRAGMENT : place + FRAGMENT + length]
        place += FRAGMENT + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(path: Path) -> dict[str, Any]:
    """The last value of every logged metric."""
    values: dict[str, Any] = {}
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = values
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[last] = json.loads(item.value_json)
    return values


def config(path: Path) -> dict[str, Any]:
    """The last value of every key of the run's config."""
    values: dict[str, Any] = {}
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        found = record.config if kind == "config" else record.run.config if kind == "run" else None
        for item in () if found is None else found.update:
            *_, last = item.nested_key or [item.key]
            values[last] = json.loads(item.value_json)
    return values
