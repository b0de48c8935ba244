"""The Message Batches API of the loopback stand-in: as strict as the real one, with its faults."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

MOST_REQUESTS = 100_000


@dataclass
class Batch:
    """A batch that ends after `polls` queries of its state."""

    id: str
    requests: list[dict[str, Any]]
    created: datetime
    polls: int
    start: int  # number of its first request, counted over all batches
    foreign: bool = False  # of another client: its results are about other requests

    @property
    def ended(self) -> bool:
        return self.polls <= 0


@dataclass
class Batches:
    """All batches. `answer` makes a message from a request's params and a fault; `complaint`
    returns the reason why params are invalid."""

    answer: Callable[[dict[str, Any], Any], dict[str, Any]]
    complaint: Callable[[dict[str, Any]], str | None]
    made: list[Batch] = field(default_factory=list)
    polls: int = 2
    # The outcome of a request by its number: "errored", "expired", "canceled", "invalid",
    # "too_long", "lost", "garbled" or "twice", or a fault of its message.
    fates: dict[int, Any] = field(default_factory=dict)
    torn: int = 0  # number of downloads that are cut off
    archived: bool = False
    results_host: str | None = None
    downloads: int = 0
    first_download: float = 0.0  # its start, in seconds since the epoch
    items: int = 0

    def create(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The (status, answer) of a POST."""
        requests = body["requests"]
        names = [request["custom_id"] for request in requests]
        if not 0 < len(requests) <= MOST_REQUESTS:
            return 400, {"message": "requests: too few or too many"}
        if len(set(names)) != len(names):
            return 400, {"message": "custom_id: must be unique"}
        if not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names):
            return 400, {"message": "custom_id: should have at most 64 characters"}
        for request in requests:
            if set(request) != {"custom_id", "params"}:
                return 400, {"message": "requests: unknown key"}
            if problem := self.complaint(request["params"]):
                return 400, {"message": problem}
        return 200, self.state(self.add(requests), "")

    def add(self, requests: list[dict[str, Any]], *, foreign: bool = False) -> Batch:
        now = datetime.now(UTC)
        name = f"msgbatch_{len(self.made)}"
        batch = Batch(name, requests, now, self.polls, self.items, foreign)
        self.items += len(requests)
        self.made.append(batch)
        return batch

    def find(self, batch_id: str) -> Batch:
        return next(batch for batch in self.made if batch.id == batch_id)

    def state(self, batch: Batch, url: str) -> dict[str, Any]:
        """The batch as the API returns it; its counts are 0 until it has ended."""
        count = len(batch.requests)
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        counts["succeeded" if batch.ended else "processing"] = count
        place = f"{self.results_host or url}/v1/messages/batches/{batch.id}/results"
        gone = batch.ended and self.archived
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if batch.ended else "in_progress",
            "request_counts": counts,
            "created_at": batch.created.isoformat(),
            "expires_at": (batch.created + timedelta(days=1)).isoformat(),
            "ended_at": batch.created.isoformat() if batch.ended else None,
            "archived_at": batch.created.isoformat() if gone else None,
            "cancel_initiated_at": None,
            "results_url": place if batch.ended and not gone else None,
        }

    def results(self, batch: Batch) -> list[str]:
        """The lines of the results, in random order."""
        lines: list[str] = []
        for place, request in enumerate(batch.requests, start=batch.start):
            fate = self.fates.get(place, "succeeded")
            name = "x" + request["custom_id"][1:] if batch.foreign else request["custom_id"]
            line = json.dumps({"custom_id": name, "result": self._result(request["params"], fate)})
            if fate == "garbled":
                line = line[: len(line) // 2]
            lines += [line] * ((fate != "lost") + (fate == "twice"))
        random.Random(self.downloads).shuffle(lines)
        return lines

    def _result(self, params: dict[str, Any], fate: Any) -> dict[str, Any]:
        errors = {
            "errored": ("api_error", "internal"),
            "invalid": ("invalid_request_error", "not so"),
            "too_long": ("invalid_request_error", "prompt is too long: 9 > 8 tokens"),
        }
        if not isinstance(fate, str):
            return {"type": "succeeded", "message": self.answer(params, fate)}
        if fate in errors:
            kind, message = errors[fate]
            error = {"type": "error", "error": {"type": kind, "message": message}}
            return {"type": "errored", "error": error}
        if fate in ("expired", "canceled"):
            return {"type": fate}
        return {"type": "succeeded", "message": self.answer(params, None)}
