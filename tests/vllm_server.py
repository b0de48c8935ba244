"""A strict loopback stand-in for `vllm serve`, with the part of vLLM 0.32 that the engine uses.

tests/unit/generation/test_vllm_protocol.py compares it and the engine with vLLM's own classes.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
END = 2
BODY = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p"),
    *(
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "return_token_ids",
        "stop_token_ids",
    ),
}


@dataclass
class Fault:
    """A faulty answer. `status` 0 closes the connection; `choice` overrides fields of the answer;
    `seconds` pass before the answer."""

    status: int = 200
    body: bytes | None = None
    choice: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    text: str
    finish_reason: str


def numbers(name: str, body: dict[str, Any]) -> Answer:
    """Depends on the model, the prompt and the temperature; answers to odd prompts are cut off."""
    seed = sum(body["prompt"]) + len(name) + round(10 * body["temperature"])
    whole = body["prompt"][-1] % 2 == 0
    tokens = [10 + (seed + n) % 50 for n in range(body["max_tokens"] - whole)]
    text = " ".join(map(str, tokens))
    return Answer([*tokens, END], text, "stop") if whole else Answer(tokens, text, "length")


class Server:
    """A replica. First it serves `faults`, one per completion. `die` and `revive` keep its port."""

    def __init__(
        self,
        model: str = "model",
        max_model_len: int = 256,
        answer: Callable[[str, dict[str, Any]], Answer] = numbers,
        adapters: dict[str, Path] | None = None,
    ) -> None:
        self.model, self.root = model, model
        self.max_model_len = max_model_len
        self.make = answer
        self.adapters = dict(adapters or {})
        self.runtime_lora = False  # VLLM_ALLOW_RUNTIME_LORA_UPDATING
        self.key: str | None = None
        self.fingerprint: str | None = f"vllm-{VERSION}-0a1b2c3d"
        self.health = 200
        self.latency = self.probe_seconds = 0.0
        self.dies_after: int | None = None  # completions
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []  # without probes
        self.answered = self.in_flight = self.peak = self.abandoned = 0
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.port = 0
        self.revive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cards(self) -> list[dict[str, Any]]:
        base = {"id": self.model, "root": self.root, "parent": None}
        loras = [
            {"id": name, "root": str(path), "parent": self.model, "max_model_len": None}
            for name, path in self.adapters.items()
        ]
        return [
            {"object": "model", "created": 0, "owned_by": "vllm", "permission": []} | card
            for card in [base | {"max_model_len": self.max_model_len}, *loras]
        ]

    def revive(self) -> None:
        self.http = _Http(("127.0.0.1", self.port), _handler(self))
        self.port = self.http.server_port
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def die(self) -> None:
        """Like `kill -9`: open connections are closed, new ones are refused."""
        http = self.http
        http.shutdown()
        http.server_close()
        http.cut()

    def complaint(self, body: dict[str, Any]) -> tuple[int, str] | None:
        """Why the request is invalid: vLLM would refuse it, or silently ignore a part of it."""
        if body.keys() - {"seed"} != BODY:
            return 400, f"unknown or missing keys: {sorted(body.keys() ^ BODY)}"
        if body["model"] not in {self.model, *self.adapters}:
            return 404, f"The model `{body['model']}` does not exist."
        prompt = body["prompt"]
        if not prompt or not all(type(token) is int and token >= 0 for token in prompt):
            return 400, "prompt: expected token ids"
        if len(prompt) + body["max_tokens"] > self.max_model_len:
            return 400, f"This model's maximum context length is {self.max_model_len} tokens."
        return None

    def load(self, body: dict[str, Any]) -> tuple[int, object]:
        if not self.runtime_lora:
            return 404, {"detail": "Not Found"}
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").exists():
            return 404, _error(f"No adapter found for {path}")
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def completion(self, body: dict[str, Any], fault: Fault) -> dict[str, Any]:
        answer = self.make(body["model"], body)
        choice = {
            "index": 0,
            "text": answer.text,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "stop_reason": None,
            "token_ids": answer.token_ids,
            "prompt_token_ids": body["prompt"],
        }
        asked, given = len(body["prompt"]), len(answer.token_ids)
        return {
            "id": f"cmpl-{next(self.numbers)}",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice | fault.choice],
            "system_fingerprint": self.fingerprint,
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": given,
                "total_tokens": asked + given,
            },
        }


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that disconnected, or this server is dying


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/health":
                return self.send(server.health, b"")
            if self.path == "/version":
                return self.answer(200, {"version": VERSION})
            if self.path != "/v1/models":
                return self.answer(404, {"detail": "Not Found"})
            if self.locked():
                return self.answer(401, {"error": "Unauthorized"})
            return self.answer(200, {"object": "list", "data": server.cards})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.locked():
                return self.answer(401, {"error": "Unauthorized"})
            if self.path == "/v1/load_lora_adapter":
                return self.answer(*server.load(body))
            if self.path != "/v1/completions":
                return self.answer(404, {"detail": "Not Found"})
            if complaint := server.complaint(body):
                status, words = complaint
                return self.answer(status, _error(words))
            if body["prompt"] == [0]:
                self.wait(server.probe_seconds)
                return self.answer(200, server.completion(body, Fault()))
            return self.complete(body)

        def complete(self, body: dict[str, Any]) -> None:
            with server.lock:
                server.requests.append(body)
                fault = server.faults.popleft() if server.faults else Fault()
                server.in_flight += 1
                server.peak = max(server.peak, server.in_flight)
            there = self.wait(fault.seconds + server.latency)
            with server.lock:
                server.in_flight -= 1
                server.abandoned += not there
            if not there or fault.status == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif fault.body is not None:
                self.send(fault.status, fault.body)
            elif fault.status != 200:
                self.answer(fault.status, _error("planned fault"))
            else:
                payload = server.completion(body, fault)
                with server.lock:
                    if server.answered == server.dies_after:
                        threading.Thread(target=server.die, daemon=True).start()
                        return
                    server.answered += 1
                    self.answer(200, payload)  # sent before `die` closes the connection

        def wait(self, seconds: float) -> bool:
            """Wait; whether the client is still connected then."""
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                readable, _, _ = select.select([self.connection], [], [], min(left, 0.05))
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    return False
            return True

        def locked(self) -> bool:
            wanted = f"Bearer {server.key}"
            return server.key is not None and self.headers.get("authorization") != wanted

        def answer(self, status: int, value: object) -> None:
            self.send(status, json.dumps(value).encode())

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


@contextmanager
def serve(count: int = 1, **settings: Any) -> Iterator[list[Server]]:
    """`count` replicas of the same model."""
    servers = [Server(**settings) for _ in range(count)]
    try:
        yield servers
    finally:
        for server in servers:
            server.die()
