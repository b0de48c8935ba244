"""A strict loopback stand-in for the Messages API. It tests the client, not the judge."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from tests.anthropic_batches import Batch, Batches
from tests.loopback import JsonHandler, listening

KEY = "sk-ant-test-0123456789abcdef"


@dataclass
class Fault:
    """An answer that replaces a verdict. `status` 0 closes the connection."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    error_code: str | None = None
    text: str | None = None  # a malformed text of the verdict
    stop_reason: str = "end_turn"
    category: str = "cyber"  # of a refusal
    error: str = "api_error"
    message: str = "planned fault"
    delay: float = 0.0  # seconds before the answer
    after: bool = False  # the fault occurs after the batch was created
    torn: bool = False  # the connection is closed in the middle of the answer


class Server:
    """Prefers the answer that contains GOOD. First it serves `faults`, one per request, and
    `batch_faults` for requests about batches."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.provider = "anthropic"  # or "bedrock" or "vertex", whose paths and headers differ
        self.token_status = 200
        self.paths: set[str] = set()
        self.signatures: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.url = ""
        self.limit: int | None = None  # concurrent requests; more are refused with 429
        self.latency = 0.0  # seconds
        self.in_flight = 0
        self.answered = 0  # messages that are billed
        self.first_at = self.last_at = 0.0  # times of requests, in seconds since the epoch
        self.batch_faults: deque[Fault] = deque()
        self.batches = Batches(
            lambda params, fault: self.message(params, fault or Fault()),
            lambda params: self.misfit(params),
        )
        # The models endpoint; None: there is none, as behind a gateway.
        self.models: dict[str, dict[str, Any]] | None = None

    def complaint(self, headers: Any) -> str | None:
        """Why the real API would refuse the headers."""
        authorization = headers.get("authorization") or ""
        signed = self.provider == "bedrock" and authorization.startswith("AWS4-HMAC-SHA256 ")
        if not signed and authorization != f"Bearer {KEY}":
            return "authentication"
        self.signatures.add(authorization)
        if self.provider == "anthropic" and not headers.get("anthropic-version"):
            return "anthropic-version: missing"
        return None

    def misfit(self, body: dict[str, Any]) -> str | None:
        """Why the parameters of a message are invalid."""
        for name in ("temperature", "top_p", "top_k", "tool_choice"):
            if name in body:
                return f"{name}: not supported"
        if body["messages"][-1]["role"] != "user":
            return "prefill is not supported"
        form = body.get("output_config", {}).get("format", {})
        if form.get("type") != "json_schema" or list(form["schema"]["properties"]) != [
            "reasoning",
            "verdict",
        ]:
            return "output_config.format: expected the verdict's schema"
        if body["system"][0].get("cache_control") != {"type": "ephemeral"}:
            return "system: expected a cached block"
        return None

    def as_message(self, path: str, body: dict[str, Any]) -> bool:
        """Whether the path is that of messages. Bedrock and Vertex name the model in the path; it
        is moved to where Anthropic has it."""
        self.paths.add(path)
        pattern = {
            "anthropic": "/v1/messages",
            "bedrock": "/model/(?P<model>[^/]+)/invoke",
            "vertex": "/projects/mine/locations/global/publishers/anthropic/models/"
            "(?P<model>[^/:]+):rawPredict",
        }[self.provider]
        found = re.fullmatch(pattern, path)
        if found is None or self.provider == "anthropic":
            return found is not None
        if "model" in body or not body.pop("anthropic_version", ""):
            return False
        body["model"] = unquote(found["model"])
        return True

    def verdict(self, body: dict[str, Any]) -> str:
        lines = body["messages"][0]["content"].split("\n")
        assert lines[1] == lines[3], "the data is between two equal fences"
        data = json.loads(lines[2])
        if "answer" in data:
            score = 5 if "GOOD" in data["answer"] else 2
            return json.dumps({"reasoning": "GOOD decides", "verdict": score})
        first, second = ("GOOD" in data[key] for key in ("answer_first", "answer_second"))
        choice = "tie" if first == second else "first" if first else "second"
        return json.dumps({"reasoning": "GOOD decides", "verdict": choice})

    def message(self, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        text = self.verdict(body) if fault.text is None else fault.text
        content = [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": text},
        ]
        refused = fault.stop_reason == "refusal"
        details = {"type": "refusal", "category": fault.category, "explanation": None}
        return {
            "id": f"msg_{next(self.numbers)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [] if refused else content,
            "stop_reason": fault.stop_reason,
            "stop_details": details if refused else None,
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 10},
        }


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(JsonHandler):
        def do_POST(self) -> None:
            with server.lock:
                server.in_flight += 1
                server.first_at = server.first_at or time.time()
                crowded = server.limit is not None and server.in_flight > server.limit
            try:
                if not crowded:
                    time.sleep(server.latency)
                self.serve(Fault(status=429) if crowded else None)
            finally:
                with server.lock:
                    server.in_flight -= 1

        def serve(self, fault: Fault | None) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/token":  # of Google's accounts
                token = {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"}
                return self.answer(server.token_status, token)
            body = json.loads(content)
            if not self.admitted():
                return None
            if self.path == "/v1/messages/batches":
                return self.create_batch(body)
            if not server.as_message(self.path, body):
                return self.answer(404, _error("not_found_error", "no such endpoint"))
            with server.lock:
                server.requests.append(body)
                fault = fault or (server.faults.popleft() if server.faults else Fault())
            if complaint := server.misfit(body):
                return self.answer(400, _error("invalid_request_error", complaint))
            if self.failed(fault):
                return None
            rates = {"anthropic-ratelimit-requests-remaining": "9"}
            with server.lock:
                server.answered += 1
                server.last_at = time.time()
            return self.answer(200, server.message(body, fault), rates)

        def create_batch(self, body: dict[str, Any]) -> None:
            fault = server.batch_faults.popleft() if server.batch_faults else Fault()
            if not fault.after and self.failed(fault):
                return None
            with server.lock:
                status, answer = server.batches.create(body)
            if fault.after and self.failed(fault):
                return None
            if status != 200:
                answer = _error("invalid_request_error", answer["message"])
            return self.answer(status, answer)

        def do_GET(self) -> None:
            if not self.admitted():
                return None
            batches, path = server.batches, self.path.partition("?")[0]
            name = path.rsplit("/", 1)[-1]
            if path.startswith("/v1/models/") and server.models is not None:
                if name not in server.models:
                    return self.answer(404, _error("not_found_error", f"model: {name}"))
                return self.answer(200, server.models[name])
            if not path.startswith("/v1/messages/batches"):
                return self.answer(404, _error("not_found_error", "no such endpoint"))
            fault = server.batch_faults.popleft() if server.batch_faults else Fault()
            if self.failed(fault):
                return None
            if name == "batches":
                newest_first = [batches.state(batch, server.url) for batch in batches.made[::-1]]
                page = {"data": newest_first, "has_more": False, "first_id": None, "last_id": None}
                return self.answer(200, page)
            if name == "results":
                return self.send_results(batches.find(path.split("/")[-2]))
            batch = batches.find(name)
            batch.polls -= 1
            return self.answer(200, batches.state(batch, server.url))

        def send_results(self, batch: Batch) -> None:
            """Send a chunked stream without a length; a torn stream lacks its end."""
            with server.lock:
                server.batches.downloads += 1
                server.batches.first_download = server.batches.first_download or time.time()
                torn = server.batches.downloads <= server.batches.torn
                lines = server.batches.results(batch)
            self.send_response(200)
            self.send_header("content-type", "application/x-jsonl")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for line in lines[: len(lines) // 2] if torn else lines:
                data = line.encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            if torn:
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(b"0\r\n\r\n")

        def admitted(self) -> bool:
            """Whether the credentials are valid; otherwise an error was sent."""
            complaint = server.complaint(self.headers)
            if complaint == "authentication":
                self.answer(401, _error("authentication_error", "invalid bearer token"))
            elif complaint:
                self.answer(400, _error("invalid_request_error", complaint))
            return complaint is None

        def failed(self, fault: Fault) -> bool:
            """Whether the fault replaced the answer."""
            if fault.delay:
                time.sleep(fault.delay)
            if fault.status == 0:
                self.close_connection = True
                self.connection.close()
            elif fault.body is not None:
                self.send(fault.status, fault.body, dict(fault.headers))
            elif fault.torn:
                self.close_connection = True
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "500")
                self.end_headers()
                self.wfile.write(b'{"id": "msg_1", "content": [')
            elif fault.status != 200:
                error = _error(fault.error, fault.message, fault.error_code)
                self.answer(fault.status, error, fault.headers)
            else:
                return False
            return True

    return Handler


def _error(kind: str, message: str, code: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"type": kind, "message": message}
    if code:
        error |= {"error_code": code, "details": {"error_code": code}}
    return {"type": "error", "error": error}


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    with listening(_handler(server)) as url:
        server.url = url
        yield server
