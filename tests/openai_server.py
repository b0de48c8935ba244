"""A strict loopback stand-in for a server with chat completions, such as `vllm serve`."""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.anthropic_server import Fault
from tests.loopback import JsonHandler, listening

KEY = "sk-test-0123456789abcdef"
MODEL = "judge-7b"
_KNOWN = {"model", "messages", "max_completion_tokens", "temperature", "response_format"}


class Server:
    """Prefers the answer that contains GOOD. First it serves `faults`, one per request.

    A fault's `stop_reason` is the finish_reason; "refusal" sends a message with a refusal.
    """

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.thought: dict[str, str] = {}  # what a reasoning parser adds to the message
        self.thought_tokens = 0
        self.models: list[dict[str, Any]] | None = [{"id": MODEL, "max_model_len": 8192}]
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.url = ""

    def complaint(self, body: dict[str, Any]) -> str | None:
        """Why a strict server would refuse the request."""
        if unknown := body.keys() - _KNOWN:
            return f"unknown keys: {unknown}"
        if body["model"] != MODEL:
            return f"the model {body['model']} does not exist"
        if [turn["role"] for turn in body["messages"][:2]] != ["system", "user"]:
            return "messages: expected the rubric, then the question"
        if body["messages"][-1]["role"] != "user":
            return "messages: the last turn is not the user's"
        form = body["response_format"]
        if form["type"] != "json_schema" or not form["json_schema"]["strict"]:
            return "response_format: expected a strict JSON schema"
        if list(form["json_schema"]["schema"]["properties"]) != ["reasoning", "verdict"]:
            return "response_format: expected the verdict's schema"
        return None

    def completion(self, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        refused = fault.stop_reason == "refusal"
        message = {
            "role": "assistant",
            "content": None
            if refused
            else self.verdict(body)
            if fault.text is None
            else fault.text or None,
            **self.thought,
            "refusal": "I will not judge this." if refused else None,
        }
        reason = "stop" if fault.stop_reason in ("end_turn", "refusal") else fault.stop_reason
        return {
            "id": f"chatcmpl-{next(self.numbers)}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "total_tokens": 110 + self.thought_tokens,
                "prompt_tokens_details": {"cached_tokens": 40},
            },
        }

    def verdict(self, body: dict[str, Any]) -> str:
        lines = body["messages"][1]["content"].split("\n")
        assert lines[1] == lines[3], "the data is between two equal fences"
        data = json.loads(lines[2])
        if "answer" in data:
            score = 5 if "GOOD" in data["answer"] else 2
            return json.dumps({"reasoning": "GOOD decides", "verdict": score})
        first, second = ("GOOD" in data[key] for key in ("answer_first", "answer_second"))
        choice = "tie" if first == second else "first" if first else "second"
        return json.dumps({"reasoning": "GOOD decides", "verdict": choice})


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(JsonHandler):
        id_header = "x-request-id"

        def do_GET(self) -> None:
            if self.path != "/v1/models" or server.models is None:
                return self.answer(404, _error("not found"))
            cards = [{"object": "model", "created": 0, "owned_by": "me"} | m for m in server.models]
            return self.answer(200, {"object": "list", "data": cards})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.requests.append(body)
                server.keys.add(self.headers.get("authorization"))
                fault = server.faults.popleft() if server.faults else Fault()
            if self.path != "/v1/chat/completions":
                return self.answer(404, _error("not found"))
            if complaint := server.complaint(body):
                return self.answer(400, _error(complaint))
            if fault.status == 0:
                self.close_connection = True
                self.connection.close()
                return None
            if fault.body is not None:
                return self.send(fault.status, fault.body, dict(fault.headers))
            if fault.status != 200:
                error = _error(fault.text or "planned fault", fault.error_code)
                return self.answer(fault.status, error, fault.headers)
            return self.answer(200, server.completion(body, fault))

    return Handler


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    with listening(_handler(server)) as url:
        server.url = f"{url}/v1"
        yield server
