"""A strict loopback stand-in for the Messages API. It proves our client, not the judge's taste."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-ant-test-0123456789abcdef"


@dataclass
class Fault:
    """What to answer instead of a verdict. `status` 0 cuts the connection."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    error_code: str | None = None
    text: str | None = None  # the verdict's text, malformed on purpose
    stop_reason: str = "end_turn"


class Server:
    """Prefers the answer that holds GOOD; serves `faults` first, one a request."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.url = ""
        self.limit: int | None = None  # requests at a time; more are refused with 429
        self.latency = 0.0  # seconds
        self.in_flight = 0

    def complaint(self, headers: Any, body: dict[str, Any]) -> str | None:
        """What the real API would refuse in this request."""
        if headers.get("authorization") != f"Bearer {KEY}":
            return "authentication"
        if not headers.get("anthropic-version"):
            return "anthropic-version: missing"
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

    def verdict(self, body: dict[str, Any]) -> str:
        lines = body["messages"][0]["content"].split("\n")
        assert lines[1] == lines[3], "the data stands between two equal fences"
        data = json.loads(lines[2])
        first, second = ("GOOD" in data[key] for key in ("answer_first", "answer_second"))
        choice = "tie" if first == second else "first" if first else "second"
        return json.dumps({"reasoning": "GOOD decides", "verdict": choice})


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            with server.lock:
                server.in_flight += 1
                crowded = server.limit is not None and server.in_flight > server.limit
            try:
                if not crowded:
                    time.sleep(server.latency)
                self.serve(Fault(status=429) if crowded else None)
            finally:
                with server.lock:
                    server.in_flight -= 1

        def serve(self, fault: Fault | None) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.requests.append(body)
                fault = fault or (server.faults.popleft() if server.faults else Fault())
            complaint = server.complaint(self.headers, body)
            if self.path != "/v1/messages":
                return self.answer(404, {"type": "error"})
            if complaint == "authentication":
                return self.answer(401, _error("authentication_error", "invalid bearer token"))
            if complaint:
                return self.answer(400, _error("invalid_request_error", complaint))
            if fault.status == 0:
                self.close_connection = True
                self.connection.close()
                return None
            if fault.body is not None:
                return self.send(fault.status, fault.body, dict(fault.headers))
            if fault.status != 200:
                error = _error("api_error", "planned fault", fault.error_code)
                return self.answer(fault.status, error, fault.headers)
            text = server.verdict(body) if fault.text is None else fault.text
            content = [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": text},
            ]
            details = {"type": "refusal", "category": "cyber", "explanation": None}
            return self.answer(
                200,
                {
                    "id": f"msg_{next(server.numbers)}",
                    "type": "message",
                    "role": "assistant",
                    "model": body["model"],
                    "content": [] if fault.stop_reason == "refusal" else content,
                    "stop_reason": fault.stop_reason,
                    "stop_details": details if fault.stop_reason == "refusal" else None,
                    "stop_sequence": None,
                    "usage": {"input_tokens": 100, "output_tokens": 10},
                },
                {"anthropic-ratelimit-requests-remaining": "9"},
            )

        def answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(value).encode(), dict(headers or {}))

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("content-type", headers.pop("content-type", "application/json"))
            self.send_header("content-length", str(len(content)))
            self.send_header("request-id", f"req_{next(server.numbers)}")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _error(kind: str, message: str, code: str | None = None) -> dict[str, Any]:
    error = {"type": kind, "message": message}
    if code:
        error |= {"error_code": code, "details": {"error_code": code}}
    return {"type": "error", "error": error}


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
