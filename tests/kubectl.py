#!/usr/bin/env python3
"""A stand-in for `kubectl` in tests of submit.sh. It keeps the cluster in a file, and accepts only
the commands that the script may use.

KUBECTL_CLUSTER     a JSON file: "plan", the outcomes of a stage's jobs, one per start (default:
                    Complete); "away", the numbers of the queries that find no API server; and the
                    objects of the cluster
KUBECTL_CALLS       a file with a line for each object that is applied or deleted, and for logs
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import yaml

CONDITIONS = '{range .status.conditions[?(@.status=="True")]}{.type}={.reason} {end}'
JOBS = {"Job", "TrainJob"}


def main(words: list[str]) -> int:
    path = Path(os.environ["KUBECTL_CLUSTER"])
    cluster = {"plan": {}, "away": [], "asked": 0, "objects": {}, "starts": {}}
    cluster |= json.loads(path.read_text())
    try:
        return act(cluster, words)
    finally:
        path.write_text(json.dumps(cluster))


def act(cluster: dict, words: list[str]) -> int:
    match words:
        case ["apply", "--filename", file]:
            for document in read(file):
                apply(cluster, document)
        case ["delete", "--filename", file, "--wait"]:
            for document in read(file):
                del cluster["objects"][key(document)]
                note(f"delete {key(document)}")
        case ["get", name, "--ignore-not-found", "--output", output]:
            cluster["asked"] += 1
            if cluster["asked"] in cluster["away"]:
                return fail("connection refused")
            assert output == f"jsonpath={{.kind}} {CONDITIONS}"
            print(look(cluster, name), end="")
        case ["logs", "--prefix", "--tail", _, "--ignore-errors", *_, "--selector", selector]:
            note(f"logs {selector}")
            print("[pod/x] the last words")
        case _:
            return fail(f"unexpected: {words}")
    return 0


def apply(cluster: dict, document: dict) -> None:
    name = key(document)
    before = cluster["objects"].get(name)
    note(f"apply {name}")
    if before is not None:
        assert before["document"] == document, f"{name} cannot be changed"
        return
    stage = document["metadata"]["labels"].get("app.kubernetes.io/component")
    state = "running"
    if document["kind"] in JOBS:
        running = [n for n, held in cluster["objects"].items() if held["state"] == "running"]
        assert not [n for n in running if n.startswith(("job/", "trainjob/"))], running
        number = cluster["starts"].get(stage, 0)
        cluster["starts"][stage] = number + 1
        plan = cluster["plan"].get(stage, [])
        state = plan[number] if number < len(plan) else "Complete=CompletionsReached"
    cluster["objects"][name] = {"document": document, "ends": state, "state": "running"}


def look(cluster: dict, name: str) -> str:
    """The state now; at the next query the job has ended."""
    held = cluster["objects"].get(name)
    if held is None:
        return ""
    seen, held["state"] = held["state"], held["ends"]
    kind = held["document"]["kind"]
    return f"{kind} " + ("" if seen == "running" else f"{seen} ")


def key(document: dict) -> str:
    return f"{document['kind'].lower()}/{document['metadata']['name']}"


def read(file: str) -> list[dict]:
    return list(yaml.safe_load_all(Path(file).read_text()))


def note(line: str) -> None:
    with Path(os.environ["KUBECTL_CALLS"]).open("a") as calls:
        calls.write(line + "\n")


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
