"""Answering into a journal: what is kept, counted and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpo_dist.config import Sampling
from dpo_dist.errors import EngineFailed
from dpo_dist.generation import sampling
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Generation

REQUESTS = [Request(str(n), (1,), Sampling(temperature=1), 4) for n in range(8)]


class Planted:
    """Cuts off every fourth answer, the first one, too; fails at request `fails_at`."""

    identity = "planted"
    max_model_len = 64

    def __init__(self, fails_at: int | None = None, wait: float = 0.0) -> None:
        self.fails_at, self.wait = fails_at, wait

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        time.sleep(self.wait)
        for n, request in enumerate(requests):
            if n == self.fails_at:
                raise EngineFailed("gone")
            yield Completion(request.id, "x", (1, 2, 3), "stop" if n % 4 else "length")

    def close(self) -> None: ...


def record(answer: Completion) -> Generation:
    return Generation(
        prompt_id=answer.id,
        arm="sft",
        decoding=0,
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        engine="planted",
    )


def test_the_share_of_cut_off_answers_is_shown_while_they_come(tmp_path: Path, monkeypatch) -> None:
    notes: list[tuple[int, str]] = []

    @contextmanager
    def progress(name: str, total: int, done: int):
        assert (name, total, done) == ("sample", 11, 3)
        yield lambda n, note="": notes.append((n, note))

    monkeypatch.setattr(sampling, "progress", progress)
    with Journal(tmp_path / "journal.jsonl", Generation) as journal:
        pace = sampling.answer_all(
            Planted(wait=0.05), REQUESTS, record, journal, name="sample", done=3, total=11
        )
    shares = ["100", "50", "33", "25", "40", "33", "29", "25"]
    assert notes == [(1, f"{share} % cut off") for share in shares]
    assert pace.tokens == 24
    assert 0.05 <= pace.first_seconds < 5


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", Generation) as journal:
        with pytest.raises(EngineFailed):
            sampling.answer_all(
                Planted(fails_at=5), REQUESTS, record, journal, name="sample", done=0, total=8
            )
        assert [kept.prompt_id for kept in journal.read()] == list("01234")
