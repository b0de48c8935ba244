"""A loopback stand-in for the Hugging Face Hub's API that creates a model repository and accepts
commits. It is strict: it refuses unknown paths, wrong tokens and malformed commits.

Endpoints and payloads are those of `huggingface_hub` 2.4's `HfApi.create_repo` and `create_commit`.
Every file is uploaded inline (`uploadMode: regular`), which the Hub allows for small files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.loopback import JsonHandler, listening

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server received: `files` by path, `repos` with the request that created them."""

    token: str
    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub(token: str) -> Iterator[Hub]:
    state = Hub(token)

    class Handler(JsonHandler):
        def do_GET(self) -> None:
            self.answer(404, {"error": f"no such page: {self.path}"})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("transfer-encoding") == "chunked":
                content = self._chunks()
            if self.headers.get("authorization") != f"Bearer {state.token}":
                self.answer(401, {"error": "Invalid username or password."})
                return
            repo = next(iter(state.repos), "")
            if self.path == "/api/repos/create":
                self._create(json.loads(content))
            elif self.path == "/api/validate-yaml":
                self._validate(json.loads(content)["content"])
            elif self.path == f"/api/models/{repo}/preupload/main":
                files = json.loads(content)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                self.answer(200, {"files": modes})
            elif self.path == f"/api/models/{repo}/commit/main":
                self._commit(content)
            else:
                self.answer(404, {"error": f"no such page: {self.path}"})

        def _chunks(self) -> bytes:
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _create(self, body: dict[str, Any]) -> None:
            repo = f"{body['organization']}/{body['name']}"
            if repo in state.repos:
                self.answer(409, {"error": "exists", "url": f"{state.url}/{repo}"})
                return
            state.repos[repo] = body
            self.answer(200, {"url": f"{state.url}/{repo}", "name": repo, "id": "1"})

        def _validate(self, text: str) -> None:
            _, front, _ = text.split("---\n", 2)
            values = yaml.safe_load(front)
            base = values.get("base_model", "owner/name")
            if base.count("/") != 1 or base.startswith("."):
                error = {"message": f'"base_model" with value "{base}" is not valid.'}
                self.answer(400, {"errors": [error], "warnings": []})
                return
            self.answer(200, {"errors": [], "warnings": []})

        def _commit(self, content: bytes) -> None:
            header, *files = map(json.loads, content.splitlines())
            assert header["key"] == "header" and header["value"]["summary"]
            for line in files:
                assert line["key"] == "file" and line["value"]["encoding"] == "base64"
                state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{state.url}/{next(iter(state.repos))}/commit/{COMMIT}"
            self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    with listening(Handler) as state.url:
        yield state
